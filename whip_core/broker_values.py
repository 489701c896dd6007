"""The values of the broker's options, checked and made into settings."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from whip_core import limits
from whip_core.broker_options import BROKER_OPTIONS, PREFIX, TEXTS, Option
from whip_core.dial_address import DialAddress
from whip_core.errors import SettingsError
from whip_core.host_patterns import dns_pattern
from whip_core.names import normalize
from whip_core.options import tls_files
from whip_core.picker_choice import make_picker
from whip_core.plugin_sources import PluginOptions
from whip_core.settings import BrokerSettings, FabricSettings, RemoteSettings, TLSFiles

CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""It is part of the fabric's subjects, where dots and wildcards mean something."""
WITH_ANOTHER_BROKER = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("tls", "tls_key_path", "tls_cert_path", "tls_ca_cert_path", "tls_crl_path"),
        *("allow_plaintext", "domains", "dial_timeout", "drain_timeout", "wait"),
        *("metrics_listen", "control_socket"),
    )
)
"""What means something beside another broker, too. The rest is for that one: to take it
without a word would have somebody rely on it."""


def by_name(name: str) -> str:
    """How mitmproxy spells an option."""
    return name


def flags_of(options: Iterable[Option]) -> Callable[[str], str]:
    """How a command spells them."""
    flags = {each.name: each.flag for each in options}
    return flags.__getitem__


def read_broker(values: Mapping[str, Any], spell: Callable[[str], str] = by_name) -> BrokerSettings:
    """Check the options' values. Raises `SettingsError`, naming options as `spell` does."""
    if not values["whip_external_tcp_address"]:
        raise SettingsError(
            f"give {spell('whip_external_tcp_address')}: the name or address of this machine "
            "that agents connect back to (localhost if they are on it)"
        )
    if values["whip_relay"] and not values["whip_fabric"]:
        raise SettingsError(
            f"{spell('whip_relay')} is for brokers that are joined: "
            f"give {spell('whip_fabric')}, too"
        )
    return BrokerSettings(
        external_host=_external_host(values["whip_external_tcp_address"], spell),
        external_port=_port(values, "whip_external_tcp_port", spell),
        listen_host=values["whip_listen_host"] or None,
        tcp_listen_port=_port(values, "whip_tcp_listen_port", spell) or 0,
        grpc_listen_port=_port(values, "whip_grpc_listen_port", spell) or 0,
        tls=_tls_files(values, spell),
        allow_plaintext=values["whip_allow_plaintext"],
        domains=_domains(values, spell),
        picker=_picker(values, spell),
        outlier_ejection=values["whip_outlier_ejection"],
        policy=Path(values["whip_policy"]).expanduser() if values["whip_policy"] else None,
        dial_timeout=read_seconds(values, "whip_dial_timeout", spell, least=0.001),
        handshake_timeout=read_seconds(values, "whip_handshake_timeout", spell, least=0.001),
        preamble_timeout=read_seconds(values, "whip_preamble_timeout", spell, least=0.001),
        drain_timeout=read_seconds(values, "whip_drain_timeout", spell),
        audit_log=Path(log).expanduser() if (log := values["whip_audit_log"]) else None,
        limits=_limits(values, spell),
        fabric=_fabric(values, spell),
        relay=values["whip_relay"],
    )


def _external_host(text: str, spell: Callable[[str], str]) -> str:
    """The host name or address, without brackets, if agents can connect back to it."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        try:
            normalize(text)
        except ValueError as error:
            why = f"{text[:80]!r} is not a host name or address"
            if ":" in text:
                port = spell("whip_external_tcp_port")
                why += f"; leave out the scheme, and give the port with {port}"
            raise SettingsError(f"{spell('whip_external_tcp_address')}: {why}") from error
        return text
    if address.is_unspecified:
        raise SettingsError(
            f"{spell('whip_external_tcp_address')}: {address} is not an address that agents can "
            "connect back to: give this machine's name, or the address that they reach it at"
        )
    return str(address)


def _fabric(values: Mapping[str, Any], spell: Callable[[str], str]) -> FabricSettings | None:
    paths = {
        part: Path(values[f"whip_fabric_{name}"]).expanduser()
        for part, name in (
            ("credentials", "credentials_path"),
            ("ca", "tls_ca_cert_path"),
            ("key", "tls_key_path"),
            ("cert", "tls_cert_path"),
        )
        if values[f"whip_fabric_{name}"]
    }
    if not values["whip_fabric"]:
        if paths:
            raise SettingsError(f"the files for a fabric need {spell('whip_fabric')}")
        return None
    if ("key" in paths) != ("cert" in paths) or ("key" in paths and "ca" not in paths):
        raise SettingsError(
            f"{spell('whip_fabric_tls_key_path')}, {spell('whip_fabric_tls_cert_path')} and "
            f"{spell('whip_fabric_tls_ca_cert_path')} belong together"
        )
    cluster = values["whip_fabric_cluster"]
    if not CLUSTER.fullmatch(cluster):
        raise SettingsError(
            f"{spell('whip_fabric_cluster')}: {cluster[:80]!r} is not a name of letters, digits, "
            "- and _ (at most 64)"
        )
    return FabricSettings(url=values["whip_fabric"], cluster=cluster, **paths)


def read_dial_socket(
    values: Mapping[str, Any], broker: BrokerSettings, spell: Callable[[str], str] = by_name
) -> BrokerSettings:
    """The broker's settings with those of its dial sockets. Raises `SettingsError`."""
    try:
        names = {
            name: tuple(map(dns_pattern, values[name]))
            for name in ("whip_dial_allow", "whip_dial_trust")
        }
    except ValueError as error:
        raise SettingsError(
            f"{spell('whip_dial_allow')} and {spell('whip_dial_trust')}: {error}"
        ) from error
    addresses = tuple(DialAddress.parse(text, listen=True) for text in values["whip_dial_listen"])
    in_tcp = [address for address in addresses if address.path is None]
    if in_tcp and not any(names.values()):
        raise SettingsError(
            f"say who may dial at {in_tcp[0]}: {spell('whip_dial_allow')} or "
            f"{spell('whip_dial_trust')} NAME, a name in the certificates of those programs"
        )
    return dataclasses.replace(
        broker,
        dial_listen=addresses,
        dial_allow=names["whip_dial_allow"],
        dial_trust=names["whip_dial_trust"],
    )


def read_remote(
    values: Mapping[str, Any], spell: Callable[[str], str] = by_name
) -> RemoteSettings | None:
    """What it takes to use another broker, if one is named. Raises `SettingsError`."""
    if not values["whip_broker"]:
        return None
    for each in BROKER_OPTIONS:
        name, default = each.name, each.default
        if name in WITH_ANOTHER_BROKER or name not in values:
            continue
        given = tuple(values[name]) if each.type is TEXTS else values[name]
        if given != (tuple(default) if each.type is TEXTS else default):
            raise SettingsError(
                f"{spell(name)} is for a broker: give it to the one at "
                f"{spell('whip_broker')} {values['whip_broker']}"
            )
    address = DialAddress.parse(values["whip_broker"])
    instead = f"name the broker's unix socket: {spell('whip_broker')}=unix:/path"
    if address.path is None and not values["whip_tls"]:
        raise SettingsError(f"a broker at {address} requires TLS: {instead}, or give certificates")
    return RemoteSettings(
        address=address,
        tls=_tls_files(values, spell, instead) if address.path is None else None,
        domains=_domains(values, spell),
        dial_timeout=read_seconds(values, "whip_dial_timeout", spell, least=0.001),
        drain_timeout=read_seconds(values, "whip_drain_timeout", spell),
    )


def read_plugins(values: Mapping[str, Any]) -> PluginOptions:
    """What the options say of plugins; nothing is loaded yet."""
    return PluginOptions(
        names=tuple(values["whip_plugins"]),
        without=tuple(values["whip_no_plugins"]),
        settings=tuple(values["whip_plugin_set"]),
    )


def _limits(values: Mapping[str, Any], spell: Callable[[str], str]) -> limits.Limits:
    def count(name: str) -> int:
        option, least = f"whip_max_{name}", limits.LEAST_SIZE if name.endswith("_size") else 0
        value: int = values[option]
        if not least <= value <= limits.MOST:
            raise SettingsError(f"{spell(option)}: {value} is not {least} to {limits.MOST}")
        return value

    names = [each.name for each in dataclasses.fields(limits.Limits) if each.name != "dial_rate"]
    rate = read_number(values, "whip_max_dial_rate", spell, 0.0, "a number of dials a second")
    return limits.Limits(dial_rate=rate, **{name: count(name) for name in names})


def _tls_files(
    values: Mapping[str, Any], spell: Callable[[str], str], instead: str = ""
) -> TLSFiles | None:
    """`instead` is what to do without certificates."""
    files = (values[f"whip_tls_{each}_path"] for each in ("key", "cert", "ca_cert", "crl"))
    return tls_files(
        values["whip_tls"],
        *files,
        spell=lambda name: spell(f"{PREFIX}{name}"),
        instead=instead or f"{spell('whip_tls')}=false on loopback",
    )


def _domains(values: Mapping[str, Any], spell: Callable[[str], str]) -> tuple[str, ...]:
    try:
        domains = (each for text in values["whip_domains"] for each in text.split(","))
        return tuple(normalize(domain.strip()) for domain in domains)
    except ValueError as error:
        raise SettingsError(f"{spell('whip_domains')}: {error}") from error


def _picker(values: Mapping[str, Any], spell: Callable[[str], str]) -> str:
    text: str = values["whip_picker"]
    try:
        make_picker(text)
    except SettingsError as error:
        raise SettingsError(f"{spell('whip_picker')}: {error}") from error
    return text


def _port(values: Mapping[str, Any], name: str, spell: Callable[[str], str]) -> int | None:
    value: int | None = values[name]
    least = 1 if name == "whip_external_tcp_port" else 0
    if value is not None and not least <= value <= 65535:
        raise SettingsError(f"{spell(name)}: {value} is not a port ({least} to 65535)")
    return value


def read_seconds(
    values: Mapping[str, Any], name: str, spell: Callable[[str], str], least: float = 0.0
) -> float:
    return read_number(values, name, spell, least, "a number of seconds")


def read_number(
    values: Mapping[str, Any], name: str, spell: Callable[[str], str], least: float, what: str
) -> float:
    try:
        number = float(values[name])
    except ValueError:
        number = -1.0
    if not least <= number < float("inf"):
        raise SettingsError(f"{spell(name)}: {values[name]!r} is not {what}")
    return number
