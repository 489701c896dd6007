"""The broker's settings as options: one table for the command line and for mitmproxy.

An option of a command is one of mitmproxy's with `whip_` in front, where it is not there
already: --tls is whip_tls, --whip-grpc-listen-port is whip_grpc_listen_port.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from whip_core import limits
from whip_core.certificates import dns_pattern
from whip_core.dial_address import DialAddress
from whip_core.errors import SettingsError
from whip_core.names import normalize
from whip_core.options import option
from whip_core.picker_choice import DEFAULT as DEFAULT_PICKER
from whip_core.picker_choice import PICKERS, make_picker
from whip_core.plugin_sources import PluginOptions
from whip_core.settings import (
    DIAL_TIMEOUT,
    DRAIN_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    PREAMBLE_TIMEOUT,
    BrokerSettings,
    FabricSettings,
    RemoteSettings,
    TLSFiles,
)

Command = TypeVar("Command", bound=Callable[..., Any])

PREFIX = "whip_"
CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""It is part of the fabric's subjects, where dots and wildcards mean something."""
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


def setting(
    flag: str,
    type_: Any,
    default: Any,
    help_: str,
    metavar: str | None = None,
    name: str | None = None,
    *,
    repeatable: bool = False,
) -> Option:
    name = PREFIX + (name or flag.removeprefix("--whip-").removeprefix("--").replace("-", "_"))
    return Option(name, flag, type_, default, help_, metavar, repeatable)


BROKER_OPTIONS: tuple[Option, ...] = (
    setting("--whip-external-tcp-address", OPTIONAL_TEXT, None,
            "The name or address of this machine that agents connect back to."),
    setting("--whip-external-tcp-port", OPTIONAL_NUMBER, None,
            "The port that agents connect back to, if it is not the listen port."),
    setting("--whip-listen-host", OPTIONAL_TEXT, None,
            "Where agents are listened for; all interfaces unless given, loopback without TLS."),
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
            "Seconds a reverse connection has to say whose it is.", "SECONDS"),
    *(setting(f"--max-{name.replace('_', '-')}", int, getattr(limits.Limits(), name), help_)
      for name, help_ in (
        ("unauthenticated", "Connections to each port that have not said who they are."),
        ("agents", "Registered agents."),
        ("agents_per_identity", "Agents with the same certificate names."),
        ("streams", "Open streams."),
        ("streams_per_agent", "Open streams to one agent."),
        ("pending_dials", "Dials under way."),
        ("preamble_size", "Octets of a reverse connection's preamble."),
        ("message_size", "Octets of a control message."),
    )),
    setting("--max-dial-rate", str, f"{limits.DIAL_RATE:g}",
            "Dials a second for one caller; 0: no limit.", "RATE"),
    setting("--drain-timeout", str, f"{DRAIN_TIMEOUT:g}",
            "Seconds that streams have to finish after SIGTERM; a second one goes at once.",
            "SECONDS"),
    setting("--audit-log", OPTIONAL_TEXT, None,
            "A file for one JSON line for each registration, refusal and dial; SIGHUP reopens it.",
            "FILE"),
    setting("--plugin", TEXTS, [], "A module, or a file, with plugin hooks (repeatable).",
            name="plugins"),
    setting("--no-plugin", TEXTS, [], "An installed plugin to leave out (repeatable).", "NAME",
            name="no_plugins"),
    setting("--plugin-set", TEXTS, [], "A setting of a plugin's (repeatable).",
            "PLUGIN.KEY=VALUE"),
    setting("--fabric", OPTIONAL_TEXT, None,
            "What joins this broker to others, so that it reaches their agents: "
            "nats://host:4222, tls://host:4222; several with commas.", "URL"),
    setting("--fabric-cluster", str, "whip", "Only brokers of one cluster hear each other.",
            "NAME"),
    setting("--fabric-credentials-path", OPTIONAL_TEXT, None, "A file with NATS credentials."),
    setting("--fabric-tls-ca-cert-path", OPTIONAL_TEXT, None,
            "The CA that the fabric's servers must be from (PEM)."),
    setting("--fabric-tls-key-path", OPTIONAL_TEXT, None, "Our private key there (PEM)."),
    setting("--fabric-tls-cert-path", OPTIONAL_TEXT, None, "Our certificate there (PEM)."),
    setting("--relay", bool, False,
            "Where an agent cannot reach the broker that dials, have the stream relayed by the "
            "one that holds it, and relay for others: both need it (docs/brokers.md)."),
    setting("--metrics-listen", OPTIONAL_TEXT, None,
            f"Where the status page and /metrics are ({METRICS_LISTEN}); empty turns it off.",
            "HOST:PORT"),
    setting("--control-socket", OPTIONAL_TEXT, None,
            "The unix socket for `whip agents` and `whip top`; empty turns it off.", "PATH"),
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
            "The same for a proxy, which is believed when it says for whom it dials (repeatable).",
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


def declare(options: Iterable[Option]) -> Callable[[Command], Command]:
    """The options as a command's, but for those that every command has."""

    def decorate(command: Command) -> Command:
        for each in reversed(tuple(options)):
            if each.name in OF_ALL_COMMANDS:
                continue
            attributes: dict[str, Any] = {"help": each.help}
            if each.metavar:
                attributes["metavar"] = each.metavar
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


def by_name(name: str) -> str:
    """How mitmproxy spells an option."""
    return name


def flags_of(options: Iterable[Option]) -> Callable[[str], str]:
    """How a command spells them."""
    flags = {each.name: each.flag for each in options}
    return flags.__getitem__


def read_broker(values: Mapping[str, Any], spell: Callable[[str], str] = by_name) -> BrokerSettings:
    """Check the options' values. Raises `SettingsError`, naming options as `spell` does."""
    address = values["whip_external_tcp_address"]
    if not address:
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
        external_host=address,
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
    return dataclasses.replace(
        broker,
        dial_listen=tuple(
            DialAddress.parse(text, listen=True) for text in values["whip_dial_listen"]
        ),
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
    return RemoteSettings(
        address=address,
        tls=_tls_files(values, spell) if address.path is None else None,
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


def _tls_files(values: Mapping[str, Any], spell: Callable[[str], str]) -> TLSFiles | None:
    if not values["whip_tls"]:
        return None
    names = ("whip_tls_key_path", "whip_tls_cert_path", "whip_tls_ca_cert_path")
    if missing := [spell(name) for name in names if not values[name]]:
        raise SettingsError(
            f"TLS is on, so give {', '.join(missing)} (`whip pki --help` makes certificates), "
            f"or set {spell('whip_tls')}=false on loopback"
        )
    key, cert, ca = (values[name] for name in names)
    return TLSFiles.of(key, cert, ca, values["whip_tls_crl_path"])


def _domains(values: Mapping[str, Any], spell: Callable[[str], str]) -> tuple[str, ...]:
    try:
        return tuple(normalize(domain) for domain in values["whip_domains"])
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
