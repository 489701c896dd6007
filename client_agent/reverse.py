"""Opening a reverse connection: connect, check whom we reached, say who we are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TypeVar

from client_agent import egress_tunnel
from client_agent.egress import EgressProxy
from whip_core import preamble, tls_transport
from whip_core.decoded_certificate import proves_host
from whip_core.errors import AgentGone
from whip_core.framed import FramedConnection
from whip_core.names import host_port
from whip_core.preamble import OldPreamble, Preamble
from whip_core.raw import RawConnection
from whip_core.settings import require_plaintext_allowed

CONNECT_TIMEOUT = 10.0
"""Seconds for the connection and its handshake: the broker's whole dial has no more."""

Connection = TypeVar("Connection", FramedConnection, RawConnection)


class ReverseConnector:
    """Opens reverse connections to one broker, which is known as `endpoint_name`.

    `context` gives the TLS context for a new connection; None means plaintext.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext] | None,
        endpoint_name: str,
        *,
        allow_plaintext: bool,
        egress: EgressProxy | None = None,
    ) -> None:
        self._context = context
        self._endpoint_name = endpoint_name
        self._allow_plaintext = allow_plaintext
        self._egress = egress

    async def open(
        self,
        connection: Connection,
        host: str,
        port: int,
        introduction: Preamble | OldPreamble,
    ) -> Connection:
        """Connect `connection` to `host:port` and introduce ourselves.

        Over TLS the listener must prove `host` or the endpoint's own name. Raises
        `AgentGone` saying what did not work; then, and when cancelled, nothing is left open.
        """
        try:
            if self._context is None:
                require_plaintext_allowed("connect to", host, self._allow_plaintext)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                transport = await self._connect(connection, host, port)
        except TimeoutError as error:
            raise AgentGone(
                f"the agent got no answer from {host_port(host, port)} within {CONNECT_TIMEOUT:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise AgentGone(
                f"the agent cannot connect back to {host_port(host, port)}: {error}"
            ) from error
        if self._context is not None:
            try:
                proven = self._is_proven(transport, host)
            except ValueError as error:
                transport.abort()
                raise AgentGone(f"the listener at {host_port(host, port)}: {error}") from error
            if not proven:
                transport.abort()
                raise AgentGone(
                    f"the listener at {host_port(host, port)} proves neither that name nor "
                    f"{self._endpoint_name}: its certificate is for others"
                )
        transport.write(preamble.encode(introduction))
        return connection

    def _is_proven(self, transport: asyncio.Transport, host: str) -> bool:
        # Not in DER: reading that takes a library which an agent need not hold.
        certificate = transport.get_extra_info("ssl_object").getpeercert()
        return bool(certificate) and (
            proves_host(certificate, host) or proves_host(certificate, self._endpoint_name)
        )

    async def _connect(
        self, connection: FramedConnection | RawConnection, host: str, port: int
    ) -> asyncio.Transport:
        sock = None
        if self._egress is not None and self._egress.carries(host):
            sock = await egress_tunnel.connect(self._egress, host, port)
        if self._context is not None:
            return await tls_transport.connect(
                connection,
                host,
                port,
                self._context(),
                handshake_timeout=CONNECT_TIMEOUT,
                sock=sock,
            )
        loop = asyncio.get_running_loop()
        if sock is not None:
            transport, _ = await loop.create_connection(lambda: connection, sock=sock)
        else:
            transport, _ = await loop.create_connection(lambda: connection, host, port)
        return transport
