"""aiohttp over a broker: `aiohttp.ClientSession(connector=WhipConnector(broker))`.

Needs `whip-tunnel[aiohttp]`. A dial that fails is `aiohttp.ClientConnectorError` (or
`ConnectionTimeoutError`), whose `__cause__` is the `DialError`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from whip_core import tls_transport
from whip_core.caller import NOBODY, Caller
from whip_core.dials import Dials

HANDSHAKE_TIMEOUT = 30.0
"""Seconds, where the request has no time limit of its own."""


class WhipConnector(aiohttp.TCPConnector):
    """aiohttp's own connector, but for where its connections come from.

    The broker is one here, or one that `whip_core.connect` gave. `caller` is what plugins get
    to see of whoever asks; `wait` as for `Dials.open_connection`; `options` as for
    `aiohttp.TCPConnector`, of which the ones about DNS and sockets mean nothing here. The
    broker is not closed with it.
    """

    def __init__(
        self, broker: Dials, *, caller: Caller = NOBODY, wait: float = 0.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self._broker = broker
        self._caller = caller
        self._wait = wait

    # What UnixConnector overrides as well: aiohttp's way to another kind of connection.
    async def _create_connection(
        self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        context = self._get_ssl_context(req)
        limit = timeout.sock_connect or timeout.connect
        try:
            if context is None:
                _, plain = await self._broker.create_connection(
                    self._factory, *self._address(req), **self._how(limit)
                )
                return plain
            return await self._connect_over_tls(req, context, limit)
        except ssl.SSLCertVerificationError as error:
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
        except ssl.SSLError as error:
            raise aiohttp.ClientConnectorSSLError(req.connection_key, error) from error
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(str(error)) from error
        except OSError as error:
            # aiohttp shows only what stands behind a number, and not each error has one.
            told = OSError(error.errno or 0, str(error))
            raise aiohttp.ClientConnectorError(req.connection_key, told) from error

    async def _connect_over_tls(
        self, req: Any, context: ssl.SSLContext, limit: float | None
    ) -> ResponseHandler:
        host, port = self._address(req)
        stream, _ = await self._broker.create_connection(
            asyncio.Protocol, host, port, **self._how(limit)
        )
        protocol: ResponseHandler = self._factory()
        transport = await tls_transport.start(
            protocol,
            stream,
            context,
            server_hostname=(req.server_hostname or host).rstrip("."),
            handshake_timeout=HANDSHAKE_TIMEOUT if limit is None else limit,
        )
        fingerprint = self._get_fingerprint(req)
        if fingerprint is not None:
            try:
                fingerprint.check(transport)
            except aiohttp.ServerFingerprintMismatch:
                transport.abort()
                raise
        return protocol

    def _address(self, req: Any) -> tuple[str, int]:
        return req.url.raw_host, req.url.port

    def _how(self, limit: float | None) -> dict[str, Any]:
        return {"caller": self._caller, "wait": self._wait, "timeout": limit}
