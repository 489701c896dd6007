"""The way into the proxy itself: who may use it (a password), and over what (TLS).

mitmproxy asks for the password (407 and a challenge, SOCKS5's too) and does the TLS; here
it is told which password, compared in constant time, and which certificate. A client that
comes in the clear to a proxy with TLS is told so, and nothing is done for it.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import hmac
import logging
import secrets
import weakref
from collections.abc import Callable
from typing import Any, cast

from cryptography import x509
from mitmproxy import ctx, http
from mitmproxy.addons.proxyauth import Validator
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, UpstreamMode
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from whip_addon.answers import plain_response
from whip_addon.settings import DoorSettings
from whip_core.errors import SettingsError
from whip_core.pem_files import signature

logger = logging.getLogger(__name__)

PLAIN_TO_TLS = "this proxy is reached over TLS only: use https:// in the proxy's address"
BEHIND_A_DOOR = (RegularMode, UpstreamMode, ReverseMode)
"""The modes whose clients can be asked for TLS."""


class ConstantTime(Validator):
    """Checks a login in a time that tells nothing about how much of it was right."""

    def __init__(self, username: str, password: str) -> None:
        self._expected = (username.encode(), password.encode())

    def __call__(self, username: str, password: str) -> bool:
        given = (username.encode(errors="replace"), password.encode(errors="replace"))
        matches = [hmac.compare_digest(*pair) for pair in zip(given, self._expected, strict=True)]
        return all(matches)


class Door:
    """`prove_names` is told which names a client's certificate has proved."""

    name = "whip.door"

    def __init__(self, prove_names: Callable[[Client, tuple[str, ...]], None]) -> None:
        self._prove_names = prove_names
        self._settings = DoorSettings()
        self._context: SSL.Context | None = None
        self._loaded_from: tuple[tuple[object, ...], bool] | None = None
        self._inside: weakref.WeakSet[Client] = weakref.WeakSet()
        self._tunnelled: weakref.WeakSet[Client] = weakref.WeakSet()

    def install(self, settings: DoorSettings) -> None:
        """Guard the proxy by `settings`. Raises `SettingsError` if a certificate does not fit."""
        self._context = server_context(settings)
        self._loaded_from = None
        self._settings = settings
        if settings.login is not None:
            # Should anything put mitmproxy's own validator back, it knows a password that
            # nobody has.
            nobody_has = f"{settings.login[0]}:{secrets.token_hex(32)}"
            ctx.options.update(proxyauth=nobody_has)
            ctx.master.addons.get("proxyauth").validator = ConstantTime(*settings.login)

    def tls_start_client(self, data: TlsData) -> None:
        if self._settings.cert is None or not self._is_at_the_door(data.context.client):
            return
        connection = SSL.Connection(self._current_context())
        connection.set_accept_state()
        data.ssl_conn = connection
        self._inside.add(data.context.client)

    def tls_established_client(self, data: TlsData) -> None:
        client = data.context.client
        if client in self._inside and client.certificate_list and self._is_at_the_door(client):
            names = client.certificate_list[0].altnames
            self._prove_names(
                client, tuple(name.value for name in names if isinstance(name, x509.DNSName))
            )

    def _is_at_the_door(self, client: Client) -> bool:
        """Whether the client's TLS is with the proxy itself, not what it says in a tunnel."""
        return isinstance(client.proxy_mode, BEHIND_A_DOOR) and client not in self._tunnelled

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self._turn_away(flow)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        self._tunnelled.add(flow.client_conn)
        self._turn_away(flow)

    def _turn_away(self, flow: http.HTTPFlow) -> None:
        client = flow.client_conn
        if (
            self._settings.cert is not None
            and not flow.is_replay
            and isinstance(client.proxy_mode, BEHIND_A_DOOR)
            and client not in self._inside
        ):
            flow.response = plain_response(400, PLAIN_TO_TLS)
            flow.response.headers["connection"] = "close"

    def _current_context(self) -> SSL.Context:
        """The certificate as it is on disk; the last good one while that cannot be used."""
        asks = bool(ctx.options.request_client_cert)
        settings = self._settings
        seen = (signature(settings.key, settings.cert, settings.client_ca), asks)
        if self._context is not None and seen == self._loaded_from:
            return self._context
        try:
            self._context = server_context(settings, ask_for_certificate=asks)
        except SettingsError as error:
            if self._context is None:
                raise
            logger.warning("whip: the proxy's new certificate is not used: %s", error)
        # Said, and tried, once for each change of the files.
        self._loaded_from = seen
        assert self._context is not None
        return self._context


def server_context(
    settings: DoorSettings, *, ask_for_certificate: bool = False
) -> SSL.Context | None:
    """The proxy's TLS, if it has any. Raises `SettingsError` if the files do not fit."""
    if settings.key is None or settings.cert is None:
        return None
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # A resumed session would bring its client certificate without showing it again.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_alpn_select_callback(cast("Any", _http1))  # pyOpenSSL's annotation is wrong
    try:
        context.use_certificate_chain_file(str(settings.cert))
        context.use_privatekey_file(str(settings.key))
        context.check_privatekey()
        if ask_for_certificate and settings.client_ca is not None:
            context.load_verify_locations(str(settings.client_ca))
            context.set_verify(SSL.VERIFY_PEER, lambda *verified: bool(verified[-1]))
    except (OSError, SSL.Error) as error:
        raise SettingsError(
            f"cannot use {settings.key} and {settings.cert} for the proxy's TLS: {_reason(error)}"
        ) from error
    return context


def _http1(_: SSL.Connection, offers: list[bytes]) -> Any:
    """mitmproxy takes no CONNECT over HTTP/2."""
    return b"http/1.1" if b"http/1.1" in offers else SSL.NO_OVERLAPPING_PROTOCOLS


def _reason(error: Exception) -> str:
    """OpenSSL's errors are lists of (library, function, reason)."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(str(entry[-1]) for entry in error.args[0])
    return str(error)
