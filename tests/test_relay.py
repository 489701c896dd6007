"""The relay: a client's transport and a service's socket joined, over each kind of stream."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from streams import (
    FRAMED_IN_MEMORY,
    KINDS,
    LOOPS,
    MOST_HELD,
    Kind,
    Loop,
    Pair,
    Recorder,
    digest,
    limit_kernel_buffers,
    pattern,
    run,
    turns,
    write_until_stuck,
)
from whip_core.relay import RelaySide, break_off, join
from whip_core.sockets import abort_with_reset

SOCKET = "socket"
FRONTS = {SOCKET: None, **{kind.name: kind for kind in KINDS}}


@dataclass
class Relayed:
    """client | front side, back side | service; `pair` carries the client, if a stream does."""

    client: Recorder
    service: Recorder
    front: RelaySide
    back: RelaySide
    pair: Pair | None
    done: list[None] = field(default_factory=list)

    def join(self) -> None:
        join(self.front, self.back, lambda: self.done.append(None))


async def connect(listens: Any, connects: Any) -> None:
    """Join two protocols by a TCP connection."""
    loop = asyncio.get_running_loop()
    accepted = asyncio.Event()

    def accept() -> Any:
        accepted.set()
        return listens

    server = await loop.create_server(accept, "127.0.0.1", 0)
    await loop.create_connection(lambda: connects, "127.0.0.1", server.sockets[0].getsockname()[1])
    await accepted.wait()
    server.close()
    await turns(3)
    limit_kernel_buffers(listens.transport, connects.transport)


@asynccontextmanager
async def relayed(front: Kind | None, service: Recorder | None = None) -> AsyncIterator[Relayed]:
    """Both ends are connected and nothing is joined. After it both sides must be done."""
    async with AsyncExitStack() as stack:
        client, service = Recorder(), service or Recorder()
        sides = RelaySide(), RelaySide()
        pair = None
        if front is None:
            await connect(sides[0], client)
        else:
            pair = await stack.enter_async_context(front.open())
            pair.attach(pair.one, client)
            pair.other.attach(sides[0])
        await connect(service, sides[1])
        made = Relayed(client, service, *sides, pair)
        try:
            yield made
        finally:
            for end in (client, service):
                if not end.lost:
                    end.transport.abort()
        while not made.done:
            await asyncio.sleep(0)
    await turns(5)
    assert len(made.done) == 1
    assert [len(end.lost) for end in (client, service)] == [1, 1]
    assert all(side.transport and side.transport.is_closing() for side in sides)


Story = Callable[[Relayed], Awaitable[None]]


def every_front(
    condition: Callable[[Kind], bool] = lambda _: True, *, joined: bool = True
) -> Callable[[Story], Callable[..., None]]:
    """Make a test of a story about a relay: with each kind of client's transport and loop."""
    cases = [
        pytest.param(front, loop, id=f"{name}-{loop_name}")
        for (name, front), (loop_name, loop) in itertools.product(FRONTS.items(), LOOPS.items())
        if front is None or condition(front)
    ]

    def decorate(story: Story) -> Callable[..., None]:
        async def told(front: Kind | None) -> None:
            async with relayed(front) as made:
                if joined:
                    made.join()
                await story(made)

        @pytest.mark.parametrize(("front", "loop"), cases)
        def test(front: Kind | None, loop: Loop) -> None:
            run(told(front), loop)

        return test

    return decorate


def test_a_relay_that_is_over_leaves_nothing_to_the_garbage_collector() -> None:
    async def main() -> None:
        async with relayed(FRAMED_IN_MEMORY) as made:
            made.join()
            made.client.transport.write_eof()
            made.service.transport.write_eof()
            while not made.done:
                await asyncio.sleep(0)
        assert made.pair is not None
        over = [weakref.ref(each) for each in (made.front, made.back, made.pair.other)]
        del made
        await turns()
        assert [each() for each in over] == [None, None, None]

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


@every_front(joined=False)
async def test_both_sides_may_be_lost_before_they_are_joined(relay: Relayed) -> None:
    break_off(relay.client.transport)
    break_off(relay.service.transport)
    while not (relay.front._lost and relay.back._lost):
        await asyncio.sleep(0)
    relay.join()


# Data and ends


@every_front()
async def test_fifty_megabytes_arrive_as_they_were_sent(relay: Relayed) -> None:
    sent = pattern(50_000_000)
    relay.service.transport.write(sent)
    relay.client.transport.write(sent[:1_000_000])
    await relay.client.until(lambda: len(relay.client.received) == len(sent))
    await relay.service.until(lambda: len(relay.service.received) == 1_000_000)
    assert digest(relay.client.received) == digest(sent)
    assert digest(relay.service.received) == digest(sent[:1_000_000])


@every_front(lambda kind: kind.half_close)
async def test_each_direction_ends_by_itself(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    client.transport.write(b"question")
    client.transport.write_eof()
    await service.until(lambda: service.ended)
    assert service.received == b"question"
    await turns()
    assert not (client.ended or client.lost)
    service.transport.write(pattern(300_000))
    service.transport.close()
    await client.until(lambda: client.ended)
    assert client.received == pattern(300_000)
    client.transport.close()
    assert await client.until_lost() is None


@every_front(lambda kind: kind.half_close)
async def test_a_service_may_end_first(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    service.transport.write_eof()
    await client.until(lambda: client.ended)
    client.transport.write(b"I am still here")
    client.transport.write_eof()
    await service.until(lambda: service.ended)
    assert service.received == b"I am still here"


@every_front()
async def test_a_service_that_answers_and_closes_is_heard_to_the_end(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    client.transport.write(b"GET")
    await service.until(lambda: service.received)
    service.transport.write(pattern(1_000_000))
    service.transport.close()
    await client.until(lambda: client.ended)
    assert digest(client.received) == digest(pattern(1_000_000))
    client.transport.close()
    assert await client.until_lost() is None


@every_front()
async def test_a_client_that_writes_and_closes_is_heard_to_the_end(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    client.transport.write(pattern(1_000_000))
    client.transport.close()
    await service.until(lambda: service.ended)
    assert digest(service.received) == digest(pattern(1_000_000))
    service.transport.close()
    assert await service.until_lost() is None


@every_front(joined=False)
async def test_a_service_that_speaks_and_ends_before_the_relay_begins_loses_nothing(
    relay: Relayed,
) -> None:
    client, service = relay.client, relay.service
    service.transport.write(b"220 ready\r\n")
    service.transport.write_eof()
    await turns()
    relay.join()
    await client.until(lambda: client.ended)
    assert client.received == b"220 ready\r\n"


@every_front()
async def test_from_a_second_piece_on_what_comes_goes_straight_to_the_other_side(
    relay: Relayed,
) -> None:
    client, service = relay.client, relay.service
    assert relay.back.transport is not None
    for piece in (b"one", b"two"):
        assert relay.front.data_received != relay.back.transport.write
        client.transport.write(piece)
        await service.until(lambda piece=piece: service.received.endswith(piece))
    assert relay.front.data_received == relay.back.transport.write


# Resets and cuts


@every_front()
async def test_a_service_that_resets_is_a_reset_to_the_client(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    service.transport.write(b"half a sent")
    await client.until(lambda: client.received == b"half a sent")
    abort_with_reset(service.transport)
    assert isinstance(await client.until_lost(), ConnectionResetError)
    assert not client.ended


@every_front()
async def test_a_client_that_resets_is_a_reset_to_the_service(relay: Relayed) -> None:
    client, service = relay.client, relay.service
    client.transport.write(b"half a sent")
    await service.until(lambda: service.received == b"half a sent")
    break_off(client.transport)
    assert isinstance(await service.until_lost(), ConnectionResetError)
    assert not service.ended


@every_front(lambda kind: kind.tells_cut)
async def test_a_tunnel_that_is_cut_is_a_reset_to_the_service(relay: Relayed) -> None:
    if relay.pair is None:
        abort_with_reset(relay.client.transport)
    else:
        relay.pair.cut()
    assert isinstance(await relay.service.until_lost(), ConnectionResetError)
    assert not relay.service.ended


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_program_with_plain_sockets_sees_the_reset(loop: Loop) -> None:
    async def main() -> None:
        async with relayed(FRAMED_IN_MEMORY) as relay:
            relay.join()
            service = relay.service.transport.get_extra_info("socket")
            with socket.socket(fileno=socket.dup(service.fileno())) as plain:
                relay.service.transport.pause_reading()
                await turns(3)
                relay.client.transport.write(b"last words")
                relay.client.transport.reset("gone")
                await relay.client.until_lost()
                plain.setblocking(True)
                plain.settimeout(10)

                def read_on() -> bytes:
                    return b"".join(iter(lambda: plain.recv(1000), b""))

                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(read_on)

    run(main(), loop)


# A slow reader


@every_front()
async def test_a_client_that_does_not_read_holds_up_the_service(relay: Relayed) -> None:
    await check_holding_up(relay.service, relay.client)


@every_front()
async def test_a_service_that_does_not_read_holds_up_the_client(relay: Relayed) -> None:
    await check_holding_up(relay.client, relay.service)


async def check_holding_up(writer: Recorder, reader: Recorder) -> None:
    reader.transport.pause_reading()
    sent = await write_until_stuck(writer, pattern(65_536))
    assert sent < 2 * MOST_HELD  # two connections, each with its buffers
    reader.transport.resume_reading()
    await reader.until(lambda: len(reader.received) == sent)
    assert digest(reader.received) == digest(pattern(65_536) * (sent // 65_536))


# Before the relay begins


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_service_that_floods_before_the_relay_begins_is_held_up(loop: Loop) -> None:
    async def main() -> None:
        async with relayed(FRAMED_IN_MEMORY) as relay:
            sent = await write_until_stuck(relay.service, bytes(65_536))
            assert sent < MOST_HELD
            relay.join()
            await relay.client.until(lambda: len(relay.client.received) == sent)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_flood_from_before_the_relay_began_is_held_up_by_a_slow_reader_after_it(
    loop: Loop,
) -> None:
    async def main() -> None:
        async with relayed(FRAMED_IN_MEMORY) as relay:
            relay.client.transport.pause_reading()
            sent = await write_until_stuck(relay.service, bytes(65_536))
            relay.join()
            sent += await write_until_stuck(relay.service, bytes(65_536))
            assert sent < 2 * MOST_HELD
            relay.client.transport.resume_reading()
            await relay.client.until(lambda: len(relay.client.received) == sent)

    run(main(), loop)


@pytest.mark.parametrize("gone", ["client", "service", "both"])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_side_that_is_lost_before_the_relay_begins_breaks_off_the_other(
    loop: Loop, gone: str
) -> None:
    async def main() -> None:
        async with relayed(None) as relay:
            for name, side in (("client", relay.front), ("service", relay.back)):
                if gone in (name, "both"):
                    assert side.transport is not None
                    abort_with_reset(side.transport)
            await turns(3)
            relay.join()
            for end in (relay.client, relay.service):
                assert isinstance(await end.until_lost(), ConnectionResetError)

    run(main(), loop)
