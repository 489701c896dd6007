"""The addon's settings: the broker's, and those of the proxy around it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whip_core.broker_options import (
    BROKER_OPTIONS,
    METRICS_LISTEN,
    OPTIONAL_TEXT,
    REMOTE,
    TEXTS,
    Option,
    setting,
)
from whip_core.broker_values import (
    by_name,
    flags_of,
    read_broker,
    read_plugins,
    read_remote,
    read_seconds,
)
from whip_core.errors import SettingsError
from whip_core.forward import ForwardSpec
from whip_core.monitor import listen_address
from whip_core.plugin_sources import PluginOptions
from whip_core.settings import BrokerSettings, RemoteSettings

PASSWORD_VARIABLE = "WHIP_PROXY_PASSWORD"  # noqa: S105  # its name

OPTIONS: tuple[Option, ...] = (
    *BROKER_OPTIONS,
    REMOTE,
    setting("--fallback", bool, False, "Connect directly to hosts that are not whip's."),
    setting("--passthrough", TEXTS, [],
            "A host (*.db.testdom) or host:port whose tunnelled connections are relayed, "
            "not inspected (repeatable).", "PATTERN"),
    setting("--forward", TEXTS, [],
            "A local port that leads to a service: 15432:db1.testdom:5432 (repeatable).",
            "LISTEN:NAME:PORT"),
    setting("--downstream-request-id-header", OPTIONAL_TEXT, None,
            "The request header whose value is carried into the logs.", "NAME"),
    setting("--proxy-auth-username", OPTIONAL_TEXT, None,
            "Ask the proxy's clients for this user name and a password."),
    setting("--proxy-auth-password-env", str, PASSWORD_VARIABLE,
            "The environment variable that holds the password."),
    setting("--proxy-auth-password-path", OPTIONAL_TEXT, None,
            "The file that holds the password."),
    setting("--proxy-tls", bool, False, "Serve the proxy over TLS only."),
    setting("--proxy-tls-key-path", OPTIONAL_TEXT, None, "The proxy's private key (PEM)."),
    setting("--proxy-tls-cert-path", OPTIONAL_TEXT, None, "The proxy's certificate (PEM)."),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}
by_flag = flags_of(OPTIONS)
WHILE_RUNNING = frozenset(
    {
        *("whip_fallback", "whip_wait", "whip_passthrough"),
        "whip_downstream_request_id_header",
    }
)
"""What may be changed while the proxy runs."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Who gets into the proxy. `login` is a user name and a password; `key` goes with `cert`."""

    login: tuple[str, str] | None = field(default=None, repr=False)
    key: Path | None = None
    cert: Path | None = None
    client_ca: Path | None = None
    """Whose certificates are believed of clients, if mitmproxy is set to ask for them."""


@dataclass(frozen=True, slots=True)
class AddonSettings:
    """Everything the addon needs, checked."""

    broker: BrokerSettings | RemoteSettings
    """Those of the broker inside, or of one elsewhere."""
    door: DoorSettings
    plugins: PluginOptions
    fallback: bool
    wait: float
    metrics_listen: str
    metrics_chosen: bool
    """Whether somebody named `metrics_listen`; a default port that is in use is not an error."""
    request_id_header: str | None
    control_socket: str | None = None
    """None is the default path, empty is none."""
    passthrough: tuple[str, ...] = ()
    forwards: tuple[ForwardSpec, ...] = ()

    def needs_restart_for(self, new: AddonSettings) -> bool:
        """Whether `new` differs in more than what may be changed while the proxy runs."""
        same = dataclasses.replace(
            new,
            fallback=self.fallback,
            wait=self.wait,
            request_id_header=self.request_id_header,
            passthrough=self.passthrough,
        )
        return same != self


def read(values: Mapping[str, Any], spell: Callable[[str], str] = by_name) -> AddonSettings:
    """Check the options' values. Raises `SettingsError`, naming options as `spell` does."""
    metrics_listen = values["whip_metrics_listen"]
    listen_address(metrics_listen or "")
    return AddonSettings(
        broker=read_remote(values, spell) or read_broker(values, spell),
        door=_door(values, spell),
        plugins=read_plugins(values),
        fallback=values["whip_fallback"],
        wait=read_seconds(values, "whip_wait", spell),
        metrics_listen=METRICS_LISTEN if metrics_listen is None else metrics_listen,
        metrics_chosen=metrics_listen is not None,
        request_id_header=values["whip_downstream_request_id_header"] or None,
        control_socket=values["whip_control_socket"],
        passthrough=tuple(values["whip_passthrough"]),
        forwards=tuple(ForwardSpec.parse(text) for text in values["whip_forward"]),
    )


def _door(values: Mapping[str, Any], spell: Callable[[str], str]) -> DoorSettings:
    username = values["whip_proxy_auth_username"]
    path = values["whip_proxy_auth_password_path"]
    key, cert = values["whip_proxy_tls_key_path"], values["whip_proxy_tls_cert_path"]
    variable = values["whip_proxy_auth_password_env"]
    for name, given in (
        ("whip_proxy_auth_password_path", bool(path)),
        ("whip_proxy_auth_password_env", variable != PASSWORD_VARIABLE),
    ):
        if given and not username:
            raise SettingsError(f"{spell(name)} needs {spell('whip_proxy_auth_username')}")
    if bool(key and cert) != bool(key or cert) or values["whip_proxy_tls"] != bool(key and cert):
        raise SettingsError(
            f"{spell('whip_proxy_tls')}, {spell('whip_proxy_tls_key_path')} and "
            f"{spell('whip_proxy_tls_cert_path')} belong together: give all of them or none"
        )
    login = None
    if username:
        try:
            login = (username, _password_from(path, variable))
        except SettingsError as error:
            raise SettingsError(
                f"{spell('whip_proxy_auth_username')} needs a password: {error} "
                f"({spell('whip_proxy_auth_password_env')} or "
                f"{spell('whip_proxy_auth_password_path')} say where it is)"
            ) from error
        if ":" in username or not _is_utf8(username):
            raise SettingsError(
                f"{spell('whip_proxy_auth_username')} is UTF-8, and cannot have a colon in it"
            )
    ca = values["whip_tls_ca_cert_path"] if values["whip_tls"] else None
    return DoorSettings(
        login=login,
        key=Path(key).expanduser() if key else None,
        cert=Path(cert).expanduser() if cert else None,
        client_ca=Path(ca).expanduser() if ca else None,
    )


def _password_from(path: str | None, variable: str) -> str:
    """The password in the file, else in the environment. Raises `SettingsError`."""
    if path:
        try:
            password = Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {path}: {error}") from error
        where = path
    else:
        password = os.environ.get(variable, "")
        where = f"the environment variable {variable}"
    if not password:
        raise SettingsError(f"{where} is empty" if path else f"{where} is not set")
    if ":" in password:
        raise SettingsError(f"the password in {where} has a colon, which mitmproxy cannot check")
    if not _is_utf8(password):
        raise SettingsError(f"the password in {where} is not UTF-8")
    return password


def _is_utf8(text: str) -> bool:
    """Arguments and variables that are not come with surrogates, which nothing can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
