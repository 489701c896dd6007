"""What `whip doctor` finds out about a dial socket: whether it answers us, and as whom."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from whip_core.certificates import certificate_names_pem
from whip_core.checkup import Checkup, Streams, check_certificates, check_port, explain
from whip_core.dial_address import DialAddress
from whip_core.dial_client import DialClient
from whip_core.dial_wire import decode_news
from whip_core.errors import DialError, NotAuthorized, RemoteProtocolError
from whip_core.settings import RemoteSettings, Role
from whip_core.tls import client_context

ANSWER_TIMEOUT = 10.0
"""Seconds for a broker to tell of all its agents, of whom there may be thousands."""
REMEDY = "see that `whip broker` runs with this --dial-listen, and no firewall is in between"


async def check_remote(checkup: Checkup, settings: RemoteSettings) -> None:
    """Whether one can dial through the broker that is named."""
    address, files = settings.address, settings.tls
    if files is None:
        await check_dial_socket(checkup, address, None, "this user, whose word is taken")
        return
    if not check_certificates(checkup, files, Role.AGENT):
        return
    context = client_context(files)

    async def connect() -> Streams:
        return await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=""
        )

    # First TLS alone, of which there is more to say than that a dial has failed.
    where = f"{address.host} port {address.port}"
    if await check_port(checkup, "dial port", where, connect, (address.host,), REMEDY):
        names = ", ".join(certificate_names_pem(files.cert.read_bytes())) or "nobody"
        await check_dial_socket(checkup, address, lambda: context, names)


async def check_dial_socket(
    checkup: Checkup,
    address: DialAddress,
    context: Callable[[], ssl.SSLContext] | None,
    who: str,
) -> None:
    """Say hello as `who`, and hear of the agents there are."""
    client = DialClient(address, context)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            agents = await _agents(client)
    except NotAuthorized as error:
        remedy = "give the broker this name with --dial-allow or --dial-trust"
        checkup.problem("dial socket", str(error), remedy)
    except (DialError, RemoteProtocolError, ValueError) as error:
        checkup.problem("dial socket", str(error), REMEDY)
    except OSError as error:
        checkup.problem("dial socket", f"{address}: {explain(error)}", REMEDY)
    else:
        checkup.ok("dial socket", f"{address} lets us dial as {who}; agents there: {agents}")
    finally:
        await client.close()


async def _agents(client: DialClient) -> int:
    """How many the broker tells of."""
    reader, writer = await client.news()
    try:
        agents = 0
        while line := await reader.readline():
            kind, _ = decode_news(line)
            if kind == "complete":
                return agents
            agents += kind == "agent"
    finally:
        writer.close()
    raise RemoteProtocolError(
        f"the broker at {client.address} closed the news stream before it was complete"
    )
