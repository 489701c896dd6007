"""A policy as it is written down: TOML, checked to the last key.

What is misspelt must not be left out, as a condition less lets more through. So every key
is known or an error, which says in one line the rule that it is in and what to do.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import time
from typing import Any

from whip_core.errors import SettingsError
from whip_core.names import check_port, normalize
from whip_core.policy import Hours, Network, Policy, Rule

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ANYONE = "*"
WHO = ("users", "certificates", "networks")
TABLES = {"caller": (*WHO, "who"), "agent": ("certificates", "networks", "who")}
"""The keys that each kind of rule says who with; one of them has to be there."""
WHAT = ("names", "labels", "ports", "hours", "days")
COMMON = ("rule", "allow")
DRY_RUN = ("dry-run", "dry_run")
"""Both spellings: a policy that is not the trial somebody takes it for would be a surprise."""
TOP = (*DRY_RUN, *TABLES)

_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]+")
_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


def parse_policy(text: str, path: str) -> Policy:
    """The policy in `text`, the contents of the file at `path`.

    Raises `SettingsError`: one line with the file, the rule and what to do.
    """
    try:
        tables = tomllib.loads(text)
        _known(tables, TOP, "at the top")
        for key in DRY_RUN:
            if not isinstance(tables.get(key, False), bool):
                raise ValueError(f"{key} = {tables[key]!r}: write true or false")
        if all(key in tables for key in DRY_RUN):
            raise ValueError(f"{' and '.join(DRY_RUN)} are the same: write one of them")
        dry_run = any(tables.get(key, False) for key in DRY_RUN)
        callers = _rules(tables, "caller")
        agents = _rules(tables, "agent") if "agent" in tables else None
    except ValueError as error:
        raise SettingsError(f"policy {path}: {error}") from error
    return Policy(callers, agents, dry_run)


def _rules(tables: Mapping[str, Any], kind: str) -> tuple[Rule, ...]:
    given = tables.get(kind, [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ValueError(f"{kind}: write it as [[{kind}]], once for each rule")
    return tuple(_rule(kind, number, table) for number, table in enumerate(given, 1))


def _rule(kind: str, number: int, table: Mapping[str, Any]) -> Rule:
    where = f"[[{kind}]] {number}"
    name = table.get("rule", where)
    if name != where:
        where = f"{where} ({name})"
    try:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"rule = {name!r}: write its name, a string on one line")
        _known(table, (*COMMON, *TABLES[kind], *WHAT), "in it")
        _check_who(kind, table)
        allows = table.get("allow", True)
        if not isinstance(allows, bool):
            raise ValueError(f"allow = {allows!r}: write true or false")
        conditions = {
            key: _read(key, table[key], read) for key, read in _READ.items() if key in table
        }
        return Rule(name=name, allows=allows, **conditions)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_who(kind: str, table: Mapping[str, Any]) -> None:
    ways = [key for key in TABLES[kind] if key != "who"]
    given = [key for key in ways if key in table]
    if "who" in table and table["who"] != ANYONE:
        raise ValueError(f'who = {table["who"]!r}: write "{ANYONE}", or one of {", ".join(ways)}')
    if "who" in table and given:
        raise ValueError(f'who = "{ANYONE}" and {given[0]} contradict each other: take one out')
    if not given and "who" not in table:
        raise ValueError(
            f'it does not say who: give {", ".join(ways)}, or who = "{ANYONE}" for everybody'
        )


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            raise ValueError(f"there is no {key!r} {where}: write one of {', '.join(keys)}")


def _read(key: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{key} = {value!r}: {error}") from error


def _texts(value: Any) -> tuple[str, ...]:
    """A string, or a list of some: not an empty one, which would fit nobody."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise ValueError("write a string, or a list of strings")
    return tuple(texts)


def _networks(value: Any) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, _texts(value)))


def _name_patterns(value: Any) -> tuple[str, ...]:
    return tuple(map(_name_pattern, _texts(value)))


def _name_pattern(text: str) -> str:
    if not set(text) & set("*?["):
        return normalize(text)
    pattern = text.lower().removesuffix(".")
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"{text!r} is not a pattern of names, such as db*.testdom")
    return pattern


def _labels(value: Any) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(each, str) for each in value.values())
    ):
        raise ValueError('write labels as { zone = "eu" }')
    return dict(value)


def _ports(value: Any) -> tuple[range, ...]:
    ports = value if isinstance(value, list) else [value]
    if not ports:
        raise ValueError('write a port, a span such as "8000-8100", or a list of them')
    return tuple(map(_span, ports))


def _span(value: Any) -> range:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'{value!r} is not a port: write 443 or "8000-8100"')
    first, dash, last = str(value).partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise ValueError(f'{value!r} is not a port: write 443 or "8000-8100"')
    start, end = check_port(int(first)), check_port(int(last or first))
    if start > end:
        raise ValueError(f"{value!r} goes backwards")
    return range(start, end + 1)


def _hours(value: Any) -> tuple[Hours, ...]:
    return tuple(map(_one_hours, _texts(value)))


def _one_hours(text: str) -> Hours:
    found = _HOURS.fullmatch(text)
    if not found:
        raise ValueError(f'{text!r} are not hours: write "08:00-18:00", or "22:00-06:00"')
    first, second, third, fourth = map(int, found.groups())
    if (third, fourth) == (24, 0):
        third = 0
    try:
        return Hours(time(first, second), time(third, fourth))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _days(value: Any) -> frozenset[int]:
    days = [text.lower() for text in _texts(value)]
    if unknown := [day for day in days if day not in DAYS]:
        raise ValueError(f"{unknown[0]!r} is not a day: write {', '.join(DAYS)}")
    return frozenset(map(DAYS.index, days))


def _lower(value: Any) -> tuple[str, ...]:
    return tuple(text.lower() for text in _texts(value))


_READ: dict[str, Callable[[Any], Any]] = {
    "users": _texts,
    "certificates": _lower,
    "networks": _networks,
    "names": _name_patterns,
    "labels": _labels,
    "ports": _ports,
    "hours": _hours,
    "days": _days,
}
