"""The control port as gRPC's own clients, and others, meet it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest

from tunnel import (
    Log,
    Watch,
    broker_settings,
    client_files,
    registration,
    run,
    scripted,
    until,
)
from whip_core import Broker, control, hookimpl
from whip_core.channel import channel_credentials
from whip_core.control_stream import MAX_EARLY
from whip_core.control_wire import METHOD_PATH, decode_broker_message, encode_agent_message

Call = grpc.aio.StreamStreamCall[bytes, bytes]


class Gate:
    """A plugin that lets agents in once it is open."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    @hookimpl
    async def whip_authorize_agent(self) -> None:
        self.asked.set()
        await self.open.wait()


@asynccontextmanager
async def channel(broker: Broker, *, tls: bool = False) -> AsyncIterator[grpc.aio.Channel]:
    """One connection, for as many calls as are made."""
    target = f"127.0.0.1:{broker.control_port}"
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    if tls:
        name = ("grpc.ssl_target_name_override", "localhost")
        credentials = channel_credentials(client_files())
        made = grpc.aio.secure_channel(target, credentials, options=[*options, name])
    else:
        made = grpc.aio.insecure_channel(target, options=options)
    async with made:
        yield made


def register(made: grpc.aio.Channel, path: str = METHOD_PATH) -> Call:
    return made.stream_stream(path)()


async def registered(call: Call, number: int) -> control.BrokerMessage | None:
    hello = control.Register(
        f"i{number}", "testdom", (80,), protocol_version=1, instance_id=str(number)
    )
    await call.write(encode_agent_message(hello))
    answer = await call.read()
    assert isinstance(answer, bytes)
    return decode_broker_message(answer)


async def status(call: Call) -> grpc.StatusCode:
    """How it ended: gRPC does not say so to who has not read everything before."""
    with contextlib.suppress(grpc.RpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


@pytest.mark.parametrize("tls", [False, True])
def test_agents_of_one_program_may_share_a_connection(tls: bool) -> None:
    """grpcio has them do so when their channels are alike, and nobody would know why one hangs."""

    async def main() -> None:
        watch = Watch()
        async with (
            Broker(broker_settings(tls=tls or None), plugins=[watch]) as broker,
            channel(broker, tls=tls) as made,
        ):
            calls = [register(made) for _ in range(20)]
            for number, call in enumerate(calls):
                assert isinstance(await registered(call, number), control.Registered)
            assert len(broker.agents) == 20
            calls[0].cancel()
            await calls[1].done_writing()
            await watch.until(lambda: len(watch.left) == 2)
            assert await status(calls[1]) is grpc.StatusCode.OK
            assert {view.name.hostname: why for view, why in watch.left} == {
                "i0": "its control stream was lost: it was broken off",
                "i1": "it closed its control stream",
            }
            broker.kick("i2.testdom")
            assert await status(calls[2]) is grpc.StatusCode.ABORTED
            assert await calls[2].details() == "ended by the operator"
            assert len(broker.agents) == 17

    run(main())


def test_a_broker_that_stops_says_so_on_every_control_stream() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(Broker(broker_settings()))
            async with channel(broker) as made:
                calls = [register(made) for _ in range(3)]
                for number, call in enumerate(calls):
                    await registered(call, number)
                await stack.aclose()
                assert {await status(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
                assert {await call.details() for call in calls} == {"the broker is shutting down"}

    run(main())


def test_a_method_that_is_not_there_is_said_so_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, channel(broker) as made:
            wrong = register(made, "/v1.Whip/Unregister")
            assert await wrong.code() is grpc.StatusCode.UNIMPLEMENTED
            assert await wrong.details() == "no method /v1.Whip/Unregister is here"
            assert isinstance(await registered(register(made), 1), control.Registered)

    run(main())


def test_a_compressed_message_is_refused_in_words() -> None:
    async def main() -> None:
        async with Broker(broker_settings()) as broker, channel(broker) as made:
            call = made.stream_stream(METHOD_PATH)(compression=grpc.Compression.Gzip)
            long = control.Register("i", "testdom", (80,), labels={"note": "x" * 500})
            await call.write(encode_agent_message(long))
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    run(main())


def test_an_agent_may_say_a_few_things_before_it_is_let_in_and_no_more() -> None:
    """Each takes effect in its turn: who is draining when it comes is draining."""

    async def main() -> None:
        watch, gate = Watch(), Gate()
        async with (
            Broker(broker_settings(), plugins=[watch, gate]) as broker,
            channel(broker) as made,
        ):
            call, chatty = register(made), register(made)
            await call.write(encode_agent_message(registration()))
            await call.write(encode_agent_message(control.Draining("already")))
            await chatty.write(encode_agent_message(registration()))
            for _ in range(MAX_EARLY + 1):
                await chatty.write(encode_agent_message(control.Draining("and again")))
            assert await chatty.code() is grpc.StatusCode.INVALID_ARGUMENT
            [refused] = watch.refused
            assert refused.text == "it sent too much before it was registered"
            gate.open.set()
            await until(lambda: [agent.draining for agent in broker.agents] == [True])

    run(main())


def test_an_agent_that_goes_while_it_is_let_in_never_was() -> None:
    async def main() -> None:
        watch, gate = Watch(), Gate()
        async with Broker(broker_settings(), plugins=[watch, gate]) as broker:
            async with channel(broker) as made:
                call = register(made)
                await call.write(encode_agent_message(registration()))
                await gate.asked.wait()
                call.cancel()
                await until(lambda: not broker._control._tasks)
            gate.open.set()
            async with scripted(broker) as other:
                await other.expect(control.Registered)
                assert len(watch.joined) == 1

    run(main())


@pytest.mark.parametrize("says", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_a_connection_without_a_control_stream_is_closed(says: bytes) -> None:
    async def main() -> None:
        watch = Watch()
        settings = broker_settings(handshake_timeout=0.2)
        async with Broker(settings, plugins=[watch]) as broker:
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.control_port)
            writer.write(says)
            await reader.read()
            [refused] = watch.refused
            assert (refused.what, refused.reason) == ("connection", "registration-timeout")
            writer.close()

    run(main())


def test_a_connection_whose_agent_has_gone_is_closed_without_a_word() -> None:
    async def main() -> None:
        watch = Watch()
        settings = broker_settings(handshake_timeout=0.5)
        async with Broker(settings, plugins=[watch]) as broker, channel(broker) as made:
            call = register(made)
            await registered(call, 1)
            await call.done_writing()
            await until(lambda: not broker._control._connections)
            assert watch.refused == []

    run(main())


def test_why_a_handshake_failed_is_in_the_brokers_log() -> None:
    async def main() -> None:
        watch = Watch()
        with Log() as log:
            async with Broker(broker_settings(tls=True), plugins=[watch]) as broker:
                _, writer = await asyncio.open_connection("127.0.0.1", broker.control_port)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                line = await log.until("control port: no TLS handshake")
                assert "127.0.0.1" in line
                assert [each.reason for each in watch.refused] == ["handshake"]
                writer.close()

    run(main())
