"""The reverse listener: a peer that has identified itself gets in, and nobody delays another."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streams import LOOPS, Loop, Recorder, authority, client_tls, run, server_tls, turns
from whip_core import tls_transport
from whip_core.errors import RemoteProtocolError, SettingsError
from whip_core.frames import FrameCodec, ResetReceived, Side
from whip_core.preamble import OldPreamble, Preamble, encode
from whip_core.reverse_listener import Arrival, ReverseListener
from whip_core.testing import Authority
from whip_core.tls import client_context

OURS = Preamble("session", "secret", "connection")
OLD = OldPreamble("connection")
PREAMBLES = [OURS, OLD]
NEVER = 1000.0
SOON = 0.05


class Door:
    """What the listener hands over to: adopts each arrival, or refuses all."""

    def __init__(self, refusal: str = "") -> None:
        self.arrivals: list[Arrival] = []
        self.recorders: asyncio.Queue[Recorder] = asyncio.Queue()
        self._refusal = refusal

    def welcome(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        if self._refusal:
            raise RemoteProtocolError(self._refusal)
        recorder = Recorder()
        arrival.adopt(recorder)
        self.recorders.put_nowait(recorder)


@asynccontextmanager
async def listening(
    door: Door,
    context: ssl.SSLContext | None = None,
    *,
    handshake: float = NEVER,
    preamble: float = NEVER,
) -> AsyncIterator[int]:
    async with ReverseListener(
        door.welcome,
        ["127.0.0.1"],
        0,
        (lambda: context) if context else None,
        handshake_timeout=handshake,
        preamble_timeout=preamble,
    ) as listener:
        yield listener.port


async def call(port: int, context: ssl.SSLContext | None = None) -> Recorder:
    """A peer that is connected, and over TLS has shaken hands."""
    peer = Recorder(keep_open=False)
    if context is None:
        await asyncio.get_running_loop().create_connection(lambda: peer, "127.0.0.1", port)
    else:
        await tls_transport.connect(peer, "127.0.0.1", port, context, handshake_timeout=NEVER)
    return peer


async def hang_up(*ends: Recorder) -> None:
    for end in ends:
        if not end.lost:
            end.transport.abort()
    for end in ends:
        await end.until_lost()


def check_told(peer: Recorder, said: bytes, why: str) -> None:
    """Who speaks frames is told why; an old peer would pass the frame on to its service."""
    told = [ResetReceived(f"refused: {why}")] if said.startswith(b"\x01") else []
    assert FrameCodec(Side.ACCEPTOR).receive(bytes(peer.received)) == told


Story = Callable[[ssl.SSLContext | None, ssl.SSLContext | None], Awaitable[None]]


def with_and_without_tls(story: Story) -> Callable[..., None]:
    """Make a test of a story about a server's context and a client's."""

    @pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
    @pytest.mark.parametrize("tls", [True, False], ids=["mtls", "tcp"])
    def test(tls: bool, loop: Loop) -> None:
        contexts = (server_tls(), client_tls()) if tls else (None, None)
        run(story(*contexts), loop)

    return test


# Who gets in


@with_and_without_tls
async def test_a_peer_is_handed_over_with_what_came_behind_its_preamble(
    server: Any, client: Any
) -> None:
    door = Door()
    async with listening(door, server) as port:
        for preamble in PREAMBLES:
            peer = await call(port, client)
            peer.transport.write(encode(preamble) + b"220 ready\r\n")
            adopted = await door.recorders.get()
            await adopted.until(lambda adopted=adopted: adopted.received == b"220 ready\r\n")
            adopted.transport.write(b"hello")
            await peer.until(lambda peer=peer: peer.received == b"hello")
            arrival = door.arrivals.pop()
            assert arrival.preamble == preamble
            assert arrival.address == peer.transport.get_extra_info("sockname")[:2]
            assert arrival.certificate_names == (("*.testdom",) if server else None)
            await hang_up(peer, adopted)


@with_and_without_tls
async def test_a_preamble_may_come_byte_by_byte(server: Any, client: Any) -> None:
    door = Door()
    async with listening(door, server) as port:
        for preamble in PREAMBLES:
            peer = await call(port, client)
            for byte in encode(preamble) + b"x":
                peer.transport.write(bytes([byte]))
                await turns(2)
            adopted = await door.recorders.get()
            await adopted.until(lambda adopted=adopted: adopted.received == b"x")
            await hang_up(peer, adopted)


@with_and_without_tls
async def test_one_that_is_in_is_under_no_deadline_and_outlives_the_listener(
    server: Any, client: Any
) -> None:
    door = Door()
    async with listening(door, server, preamble=10 * SOON) as port:
        peer = await call(port, client)
        peer.transport.write(encode(OURS))
        adopted = await door.recorders.get()
        late = await call(port, client)
        await late.until_lost()  # its deadline began later, and has come
    peer.transport.write(b"still here")
    await adopted.until(lambda: adopted.received == b"still here")
    await hang_up(peer, adopted)


@with_and_without_tls
async def test_silent_peers_delay_nobody(server: Any, client: Any) -> None:
    door = Door()
    async with listening(door, server) as port:
        silent = [await call(port) for _ in range(20)]
        halfway = [await call(port, client) for _ in range(20)]
        for peer in halfway:
            peer.transport.write(encode(OURS)[:10])
        peer = await call(port, client)
        peer.transport.write(encode(OURS))
        adopted = await door.recorders.get()
        await hang_up(*silent, *halfway, peer, adopted)
    assert len(door.arrivals) == 1


# Who does not


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("tls", [True, False], ids=["mtls", "tcp"])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "this is not a whip agent: the first byte is 47"),
        (b"{" + b"x" * 10_000, "a preamble of over 4096 bytes"),
        (b"{}}", "refused at the door"),
        (encode(OURS), "refused at the door"),
    ],
)
def test_garbage_is_refused_with_one_line_that_says_why(
    said: bytes, reason: str, tls: bool, loop: Loop, warnings: Callable[[], list[str]]
) -> None:
    async def main() -> None:
        door = Door("refused at the door")
        async with listening(door, server_tls() if tls else None) as port:
            peer = await call(port, client_tls() if tls else None)
            address = "{} port {}".format(*peer.transport.get_extra_info("sockname"))
            peer.transport.write(said)
            await peer.until_lost()
            check_told(peer, said, reason)
            assert warnings() == [f"reverse port: refused {address}: {reason}"]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("said", [b"", encode(OURS)[:-1]])
@pytest.mark.parametrize("tls", [True, False], ids=["mtls", "tcp"])
def test_a_peer_that_does_not_come_to_the_point_is_refused_at_its_deadline(
    tls: bool, said: bytes, loop: Loop, warnings: Callable[[], list[str]]
) -> None:
    async def main() -> None:
        door = Door()
        async with listening(door, server_tls() if tls else None, preamble=SOON) as port:
            peer = await call(port, client_tls() if tls else None)
            peer.transport.write(said)
            await peer.until_lost()
            check_told(peer, said, "did not identify itself within 0.05 s")
            assert len(warnings()) == 1
            assert door.arrivals == []

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_peer_that_just_leaves_is_nothing_to_talk_about(
    loop: Loop, warnings: Callable[[], list[str]]
) -> None:
    async def main() -> None:
        door = Door()
        async with listening(door) as port:
            for act in ("close", "abort"):
                peer = await call(port)
                peer.transport.write(b"{")
                getattr(peer.transport, act)()
                await peer.until_lost()
            other = await call(port)
            other.transport.write(encode(OURS))
            await hang_up(other, await door.recorders.get())
        assert warnings() == []

    run(main(), loop)


def strangers() -> ssl.SSLContext:
    """A client with a certificate of another CA."""
    other = Authority(authority().folder / "other")
    context = client_context(other.client_files("*.testdom"))
    context.load_verify_locations(authority().ca_cert)
    return context


def nobody() -> ssl.SSLContext:
    """A client without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority().ca_cert)
    return context


def outdated() -> ssl.SSLContext:
    """A client that knows nothing newer than TLS 1.1."""
    context = client_context(authority().client_files("*.testdom"))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("who", [strangers, nobody, outdated])
def test_a_client_that_cannot_prove_itself_is_refused(
    who: Callable[[], ssl.SSLContext], loop: Loop, warnings: Callable[[], list[str]]
) -> None:
    async def main() -> None:
        door = Door()
        async with listening(door, server_tls()) as port:
            try:
                peer = await call(port, who())
            except OSError:
                pass  # TLS 1.2 and below: the handshake fails at both ends
            else:
                peer.transport.write(encode(OURS))
                await peer.until_lost()
            assert door.arrivals == []
            (line,) = warnings()
            assert "no TLS handshake with 127.0.0.1 port" in line

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", encode(OURS)])
def test_a_client_without_tls_is_refused_where_there_is_tls(
    said: bytes, loop: Loop, warnings: Callable[[], list[str]]
) -> None:
    async def main() -> None:
        door = Door()
        async with listening(door, server_tls(), handshake=SOON) as port:
            peer = await call(port)
            peer.transport.write(said)
            await peer.until_lost()
        assert door.arrivals == []
        assert len(warnings()) == 1

    run(main(), loop)


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do() -> None:
    async def main() -> None:
        async with listening(Door()) as port:
            listener = ReverseListener(
                Door().welcome,
                ["127.0.0.1"],
                port,
                None,
                handshake_timeout=NEVER,
                preamble_timeout=NEVER,
            )
            with pytest.raises(SettingsError, match=f"port {port}.*--whip-tcp-listen-port"):
                await listener.__aenter__()

    run(main())


def test_leaving_closes_the_ports_and_drops_who_has_said_nothing() -> None:
    async def main() -> None:
        async with listening(Door()) as port:
            peer = await call(port)
            await turns()
        await peer.until_lost()
        with pytest.raises(OSError, match="onnect"):
            await call(port)

    run(main())
