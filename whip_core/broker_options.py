"""The broker's settings as options: one table for the command line and for mitmproxy.

An option of a command is one of mitmproxy's with `whip_` in front, where it is not there
already: --tls is whip_tls, --whip-grpc-listen-port is whip_grpc_listen_port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from whip_core import limits
from whip_core.options import PLUGIN_SETTINGS, MayBeEmpty, option
from whip_core.picker_choice import DEFAULT as DEFAULT_PICKER
from whip_core.picker_choice import PICKERS
from whip_core.settings import (
    DIAL_TIMEOUT,
    DRAIN_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    PREAMBLE_TIMEOUT,
)

Command = TypeVar("Command", bound=Callable[..., Any])

PREFIX = "whip_"
METRICS_LISTEN = "127.0.0.1:9464"

OPTIONAL_TEXT: Any = str | None
OPTIONAL_NUMBER: Any = int | None
TEXTS: Any = Sequence[str]


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. `flag` is its name in `whip proxy`."""

    name: str
    flag: str
    type: Any
    default: Any
    help: str
    metavar: str | None = None
    repeatable: bool = False
    """A list in one text, separated by commas; a command takes it in several options too."""
    separator: str | None = None
    """What separates several in the environment, if commas may be in one."""
    may_be_empty: bool = False
    """Whether the empty value means something, so that an empty variable does, too."""


def setting(
    flag: str,
    type_: Any,
    default: Any,
    help_: str,
    metavar: str | None = None,
    name: str | None = None,
    *,
    repeatable: bool = False,
    separator: str | None = None,
    may_be_empty: bool = False,
) -> Option:
    name = PREFIX + (name or flag.removeprefix("--whip-").removeprefix("--").replace("-", "_"))
    return Option(name, flag, type_, default, help_, metavar, repeatable, separator, may_be_empty)


BROKER_OPTIONS: tuple[Option, ...] = (
    setting("--whip-external-tcp-address", OPTIONAL_TEXT, None,
            "The name or address of this machine that agents connect back to."),
    setting("--whip-external-tcp-port", OPTIONAL_NUMBER, None,
            "The port that agents connect back to, if it is not the listen port."),
    setting("--whip-listen-host", OPTIONAL_TEXT, None,
            "The address to listen on for agents (default: all interfaces; loopback without TLS)."),
    setting("--whip-tcp-listen-port", int, 8000, "The port for reverse connections."),
    setting("--whip-grpc-listen-port", int, 50051, "The port for control streams."),
    setting("--tls", bool, True, "Mutual TLS on every connection with agents."),
    setting("--tls-key-path", OPTIONAL_TEXT, None, "Our private key (PEM)."),
    setting("--tls-cert-path", OPTIONAL_TEXT, None, "Our certificate (PEM)."),
    setting("--tls-ca-cert-path", OPTIONAL_TEXT, None,
            "The CA that the agents' certificates must be from (PEM)."),
    setting("--tls-crl-path", OPTIONAL_TEXT, None,
            "Revocation lists of the CA, one of each if there are several (PEM)."),
    setting("--allow-plaintext", bool, False, "Let --tls=false leave this machine."),
    setting("--domain", TEXTS, [],
            "A domain that always belongs to whip, whether it has an agent or not (repeatable).",
            name="domains"),
    setting("--dial-timeout", str, f"{DIAL_TIMEOUT:g}", "Seconds that a dial may take.", "SECONDS"),
    setting("--wait", str, "0", "Seconds that a dial waits for its agent to appear.", "SECONDS"),
    setting("--picker", str, DEFAULT_PICKER,
            f"How one of a domain's agents is picked: {', '.join(PICKERS)}; sticky may go by a "
            "header (sticky:header=x-user) or a cookie (sticky:cookie=session); one domain's "
            "own is testdom=sticky (repeatable, or separated by commas).", "[DOMAIN=]PICKER",
            repeatable=True),
    setting("--outlier-ejection", bool, False,
            "Leave an agent that keeps failing out of its domain for a while."),
    setting("--policy", OPTIONAL_TEXT, None,
            "A TOML file that says who may reach what; nobody else may (docs/policy.md).", "FILE"),
    setting("--handshake-timeout", str, f"{HANDSHAKE_TIMEOUT:g}",
            "Seconds a peer has for its TLS handshake, and an agent to register.", "SECONDS"),
    setting("--preamble-timeout", str, f"{PREAMBLE_TIMEOUT:g}",
            "Seconds a reverse connection has to identify itself.", "SECONDS"),
    *(setting(f"--max-{name.replace('_', '-')}", int, getattr(limits.DEFAULT, name), help_)
      for name, help_ in (
        ("unauthenticated", "Connections to each port that have not identified themselves."),
        ("agents", "Registered agents."),
        ("agents_per_identity", "Agents with the same certificate names."),
        ("streams", "Open streams."),
        ("streams_per_agent", "Open streams to one agent."),
        ("pending_dials", "Dials under way."),
        ("preamble_size", "Octets of a reverse connection's preamble."),
        ("message_size", "Octets of a control message."),
    )),
    setting("--max-dial-rate", str, f"{limits.DEFAULT.dial_rate:g}",
            "Dials a second for one caller; 0: no limit.", "RATE"),
    setting("--drain-timeout", str, f"{DRAIN_TIMEOUT:g}",
            "Seconds that streams have to finish after SIGTERM; a second SIGTERM stops at once.",
            "SECONDS"),
    setting("--audit-log", OPTIONAL_TEXT, None,
            "A file for one JSON line for each registration, refusal and dial; SIGHUP reopens it.",
            "FILE"),
    setting("--plugin", TEXTS, [], "A module, or a file, with plugin hooks (repeatable).",
            name="plugins"),
    setting("--no-plugin", TEXTS, [], "An installed plugin to leave out (repeatable).", "NAME",
            name="no_plugins"),
    setting("--plugin-set", TEXTS, [], "A plugin's setting (repeatable).",
            "PLUGIN.KEY=VALUE", separator=PLUGIN_SETTINGS),
    setting("--fabric", OPTIONAL_TEXT, None,
            "What joins this broker to others, so that it reaches their agents: "
            "nats://host:4222, tls://host:4222; several separated by commas.", "URL"),
    setting("--fabric-cluster", str, "whip", "Only brokers of one cluster hear each other.",
            "NAME"),
    setting("--fabric-credentials-path", OPTIONAL_TEXT, None, "A file with NATS credentials."),
    setting("--fabric-tls-ca-cert-path", OPTIONAL_TEXT, None,
            "The CA that the fabric's servers must be from (PEM)."),
    setting("--fabric-tls-key-path", OPTIONAL_TEXT, None, "Our private key for the fabric (PEM)."),
    setting("--fabric-tls-cert-path", OPTIONAL_TEXT, None, "Our certificate for the fabric (PEM)."),
    setting("--relay", bool, False,
            "Where an agent cannot reach the broker that dials, have the stream relayed by the "
            "one that holds it, and relay for others: both need it (docs/brokers.md)."),
    setting("--metrics-listen", OPTIONAL_TEXT, None,
            f"Where the status page and /metrics are ({METRICS_LISTEN}); empty turns it off.",
            "HOST:PORT", may_be_empty=True),
    setting("--control-socket", OPTIONAL_TEXT, None,
            "The unix socket for `whip agents` and `whip top`; empty turns it off.", "PATH",
            may_be_empty=True),
)  # fmt: skip
REMOTE = setting("--broker", OPTIONAL_TEXT, None,
                 "Dial through the `whip broker` with this dial socket (unix:/path or host:port) "
                 "instead of being a broker.", "ADDRESS")  # fmt: skip
"""For what can be a broker and can also use another."""
DIAL_SOCKET_OPTIONS: tuple[Option, ...] = (
    setting("--dial-listen", TEXTS, [],
            "A dial socket, through which others dial: unix:/path, or host:port with TLS "
            "(repeatable).", "ADDRESS"),
    setting("--dial-allow", TEXTS, [],
            "A certificate's name (or *.rest) that may dial over TCP, as itself (repeatable).",
            "NAME"),
    setting("--dial-trust", TEXTS, [],
            "Like --dial-allow, for a proxy that is trusted to say on whose behalf it dials "
            "(repeatable).",
            "NAME"),
)  # fmt: skip
OF_ALL_COMMANDS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("metrics_listen", "allow_plaintext"),
        *("tls", "tls_key_path", "tls_cert_path", "tls_ca_cert_path"),
        "tls_crl_path",
    )
)
"""What `whip_core.options.common_options` declares for every long-running command."""


def declare(options: Iterable[Option]) -> Callable[[Command], Command]:
    """The options as a command's, but for those that every command has."""

    def decorate(command: Command) -> Command:
        for each in reversed(tuple(options)):
            if each.name in OF_ALL_COMMANDS:
                continue
            attributes: dict[str, Any] = {"help": each.help}
            if each.metavar:
                attributes["metavar"] = each.metavar
            if each.may_be_empty:
                attributes["cls"] = MayBeEmpty
            if each.separator:
                attributes["separator"] = each.separator
            if each.type is TEXTS:
                attributes["multiple"] = True
            elif each.repeatable:
                attributes.update(multiple=True, default=[each.default], callback=_joined)
            else:
                attributes["default"] = each.default
                attributes["type"] = {bool: bool, int: int, OPTIONAL_NUMBER: int}.get(
                    each.type, str
                )
            command = option(each.flag, each.name, **attributes)(command)
        return command

    return decorate


def _joined(_: click.Context, __: click.Parameter, values: Sequence[str]) -> str:
    return ",".join(values)


def chosen(
    options: Iterable[Option], values: Mapping[str, Any], *, metrics_given: bool
) -> dict[str, Any]:
    """A command's values under the options' names, as `read_broker` wants them."""
    found = {
        each.name: values[
            each.name.removeprefix(PREFIX) if each.name in OF_ALL_COMMANDS else each.name
        ]
        for each in options
    }
    if not metrics_given:
        found["whip_metrics_listen"] = None
    return found
