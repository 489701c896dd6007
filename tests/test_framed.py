"""Framed connections: dials refused, cancelled, and following each other on one connection."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from framed_ends import NEXT_ID, connected, end_both
from streams import (
    DIAL_ID,
    EXTRA,
    PORT,
    Accepting,
    Pair,
    Recorder,
    every_kind,
    framed_kinds,
    run,
    turns,
)
from whip_core.errors import (
    AgentGone,
    DialError,
    LocalProtocolError,
    PortNotExposed,
    ServiceRefused,
)
from whip_core.framed import FramedConnection
from whip_core.frames import FailureCode, OpenRequested
from whip_core.stream import Stream

# One stream after the other


@every_kind(framed_kinds)
async def test_a_connection_whose_stream_has_ended_carries_the_next_one_clean(pair: Pair) -> None:
    opener, acceptor = pair.carriers
    one, other = pair.attach_both()
    one.transport.write(b"the first user's")
    one.transport.close()
    await other.until(lambda: other.ended)
    assert not opener.is_parked
    other.transport.close()
    assert (await one.until_lost(), await other.until_lost()) == (None, None)
    assert opener.is_parked

    second_one = pair.attach(await opener.open(PORT, NEXT_ID, extra=EXTRA))
    second_other = pair.attach(await acceptor.accepted.get())
    one.transport.write(b"late")
    other.transport.pause_reading()
    other.transport.abort()
    second_one.transport.write(b"the second user's")
    second_other.transport.write(b"the answer")
    await second_other.until(lambda: second_other.received == b"the second user's")
    await second_one.until(lambda: second_one.received == b"the answer")
    assert other.received == b"the first user's"
    assert not one.received


def test_many_streams_follow_each_other_on_one_connection() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            for number in range(100):
                dial_id = number.to_bytes(16, "big")
                one = await opener.open(PORT, dial_id, extra=EXTRA)
                other = await acceptor.accepted.get()
                assert (one.dial_id, other.dial_id) == (dial_id.hex(), dial_id.hex())
                await end_both(one, other)
            assert (opener.parked, opener.is_parked, acceptor.is_parked) == (100, True, True)

    run(main())


def test_a_stream_that_is_over_has_no_say_over_the_next_one() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            old = await opener.open(PORT, DIAL_ID, extra=EXTRA)
            await end_both(old, await acceptor.accepted.get())
            new = await opener.open(PORT, NEXT_ID, extra=EXTRA)
            recorder = Recorder()
            new.attach(recorder)
            limits = new.get_write_buffer_limits()

            old.write(b"x")
            old.pause_reading()
            old.set_write_buffer_limits(high=7)
            old.close()
            old.reset("now")

            assert new.get_write_buffer_limits() == limits
            (await acceptor.accepted.get()).write(b"still here")
            await recorder.until(lambda: recorder.received == b"still here")
            assert (old.bytes_sent, new.bytes_sent) == (0, 0)

    run(main())


def test_limits_that_one_stream_has_set_are_not_left_to_the_next() -> None:
    async def main() -> None:
        async with connected() as (opener, acceptor):
            one = await opener.open(PORT, DIAL_ID, extra=EXTRA)
            before = one.get_write_buffer_limits()
            one.set_write_buffer_limits(high=1)
            await end_both(one, await acceptor.accepted.get())
            new = await opener.open(PORT, NEXT_ID, extra=EXTRA)
            assert new.get_write_buffer_limits() == before

    run(main())


# Dials that fail


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (FailureCode.SERVICE_REFUSED, ServiceRefused),
        (FailureCode.PORT_NOT_EXPOSED, PortNotExposed),
        (FailureCode.DRAINING, AgentGone),
        (200, ServiceRefused),
    ],
)
def test_a_refused_dial_says_why_and_leaves_the_connection_parked(
    code: int, error: type[DialError]
) -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            dial = opener.dial()
            await acceptor.asked.get()
            acceptor.refuse(code, "nothing listens on /run/\udcff")
            with pytest.raises(error, match=r"nothing listens on /run/"):
                await dial
            assert (opener.is_parked, opener.parked, acceptor.is_parked) == (True, 1, True)

    run(main())


def test_a_connection_that_goes_fails_its_dial_and_ends_the_agents_attempt() -> None:
    class Trying(Accepting):
        async def answer(self, request: OpenRequested) -> None:
            self.asked.put_nowait(request)
            self.attempt = asyncio.get_running_loop().create_future()
            await self.attempt

    async def main() -> None:
        acceptor = Trying()
        async with connected(acceptor) as (opener, _):
            dial = opener.dial()
            await acceptor.asked.get()
            opener.transport.abort()
            with pytest.raises(AgentGone):
                await dial
            await acceptor.gone.wait()
            await turns()
            assert acceptor.attempt.cancelled()

    run(main())


def test_only_a_parked_connection_takes_a_dial() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            dial = opener.dial()
            await acceptor.asked.get()
            with pytest.raises(LocalProtocolError):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await dial
            opener.close()
            await opener.gone.wait()
            with pytest.raises(AgentGone):
                await opener.open(PORT, NEXT_ID, extra=EXTRA)

    run(main())


def test_the_next_dial_may_take_the_connection_before_the_refused_one_has_heard() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            first = opener.dial()
            await acceptor.asked.get()

            async def dial_next() -> Stream:
                await asyncio.sleep(0)  # the turn in which the refusal arrives
                assert opener.is_parked
                assert not first.done()
                return await opener.open(PORT, NEXT_ID, extra=EXTRA)

            second = asyncio.get_running_loop().create_task(dial_next())
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            with pytest.raises(ServiceRefused):
                await first
            await acceptor.asked.get()
            other = acceptor.accept(extra=EXTRA)
            await end_both(await second, other)

    run(main())


# Dials that are cancelled


@pytest.mark.parametrize("answer", ["accepted", "refused", "nothing"])
@pytest.mark.parametrize("after", range(10))
def test_a_dial_cancelled_at_any_moment_leaves_nothing(after: int, answer: str) -> None:
    class Answering(Accepting):
        async def answer(self, request: OpenRequested) -> None:
            if answer == "accepted":
                self.accept(extra=EXTRA).attach(agents)
            elif answer == "refused":
                self.refuse(FailureCode.SERVICE_REFUSED, "no")
            else:
                await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with connected(Answering()) as (opener, acceptor):
            dial = opener.dial()
            await turns(after)
            dial.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceRefused):
                await end_both(await dial)  # it was too late
            await turns()
            assert opener.lost == acceptor.lost
            assert opener.is_parked == acceptor.is_parked == (not opener.lost)
            assert len(agents.lost) == agents.made

    agents = Recorder(keep_open=False)
    run(main())


def test_a_refused_dial_that_is_cancelled_leaves_the_connection_to_the_next() -> None:
    async def main() -> None:
        async with connected(Accepting(answers=False)) as (opener, acceptor):
            first = opener.dial()
            await acceptor.asked.get()
            acceptor.refuse(FailureCode.SERVICE_REFUSED, "no")
            while not opener.parked:
                await asyncio.sleep(0)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceRefused):
                await first
            assert opener.is_parked

    run(main())


class Failing(Accepting):
    """Its task fails, or is cancelled, before it has answered."""

    def __init__(self, fails: BaseException) -> None:
        super().__init__()
        self._fails = fails

    def _opened(self, _: FramedConnection, request: OpenRequested) -> asyncio.Task[None]:
        async def fail() -> None:
            raise self._fails

        return asyncio.get_running_loop().create_task(fail())


@pytest.mark.parametrize("fails", [ValueError("a bug"), asyncio.CancelledError()], ids=repr)
def test_an_open_that_is_never_going_to_be_answered_closes_the_connection(
    fails: BaseException,
) -> None:
    async def main() -> None:
        async with connected(Failing(fails)) as (opener, acceptor):
            with pytest.raises(AgentGone):
                await opener.dial()
            await acceptor.gone.wait()

    run(main())
