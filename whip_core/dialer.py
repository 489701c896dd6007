"""A dial, step by step: resolve, keep who exposes the port, pick, authorize, open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Collection, Coroutine
from functools import partial
from typing import Protocol

from whip_core.admission import Admission
from whip_core.agents import AgentView, Destination, FailedAttempt, StreamClosed
from whip_core.caller import Caller
from whip_core.candidates import Candidate, Candidates
from whip_core.deadlines import Deadlines
from whip_core.dial import Answer, Asked, Dial, MayReturn, Tell
from whip_core.errors import (
    BrokerClosed,
    Busy,
    DialError,
    DialTimeout,
    NotAuthorized,
    PortNotExposed,
    UnknownName,
)
from whip_core.frames import DIAL_ID_SIZE
from whip_core.limits import Limits
from whip_core.names import Target
from whip_core.plugins import Plugins
from whip_core.registry import Registry
from whip_core.session import Session
from whip_core.stream import Stream, cut

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Into how many a dial's time is divided at the most: an agent that does not answer must
leave time for others, and each must have enough for a long path."""
MOST_TRIED = 10
"""Agents that one dial tries: of a domain where every other service is down it finds one that
is up but for once in a thousand dials; where all are down it does not ask thousands."""
SEEK_INTERVAL = 0.5
"""Seconds between two looks elsewhere for an agent that is waited for: nobody tells us."""


class Elsewhere(Protocol):
    """Where agents may be found that are not registered here."""

    async def find(
        self, target: Target, caller: Caller, tried: Collection[Session]
    ) -> Candidates[Session] | None:
        """Who may serve `target`, but for those `tried`; may raise `DialError`."""


class Dialer:
    """Opens streams to registered agents, and to those that are found `elsewhere`."""

    def __init__(
        self,
        registry: Registry[Session],
        plugins: Plugins,
        timeout: float,
        admission: Admission | None = None,
    ) -> None:
        self.elsewhere: Elsewhere | None = None
        self._admission = admission or Admission(Limits())
        self._registry = registry
        self._plugins = plugins
        self._timeout = timeout
        self._changed = asyncio.Event()
        self._streams: set[Stream] = set()
        self._opening = 0
        self._deadlines = Deadlines(Asked.too_late)
        self._quiet = asyncio.Event()
        self.closed = True
        """Whether the broker is not open (yet, or any more)."""

    def agents_changed(self) -> None:
        """Wake the dials that wait for an agent to appear."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_quiet(self) -> None:
        """Wait until no stream is open."""
        while self._streams:
            self._quiet.clear()
            await self._quiet.wait()

    def cut(self) -> None:
        """Break every stream that is open: whoever reads one is told that it is incomplete."""
        for stream in tuple(self._streams):
            stream.reset("the broker was closed", cut("the broker was closed"))

    def running_bytes(self) -> dict[str, tuple[int, int]]:
        """To and from each agent, by its full name, in the streams that are open."""
        found: dict[str, tuple[int, int]] = {}
        for stream in self._streams:
            dial: Dial = stream.get_extra_info("whip")
            assert dial.candidate is not None
            name = dial.candidate.session.name.full
            to_agent, from_agent = found.get(name, (0, 0))
            found[name] = (to_agent + stream.bytes_sent, from_agent + stream.bytes_received)
        return found

    async def dial(
        self, host: str, port: int | str, *, caller: Caller, wait: float, timeout: float | None
    ) -> Stream:
        """A stream to `host:port`, held back until it is given a protocol.

        Waits up to `wait` seconds for such an agent to appear, then takes up to `timeout`
        seconds (None: the broker's) to open. Raises `DialError`. Cancelled, it leaves
        nothing behind: no entry, no connection, no stream.
        """
        started = time.monotonic()
        try:
            target = Target.parse(host, port)
        except ValueError as error:
            raise UnknownName(str(error)) from error
        dial = Dial(secrets.token_bytes(DIAL_ID_SIZE), target, caller, started)
        return await self._run(dial, wait, timeout)

    def begin(self, target: Target, caller: Caller, wait: float, tell: Tell) -> Asked | None:
        """The same for a caller that does not await, on the shortest way that there is.

        If nobody but the agent has to be waited for, it is asked on a parked connection before
        this returns, and the stream is told in the turn in which it answers. Anything else is
        told as a coroutine, at once or then; it raises the `DialError`s. What is returned can
        be cancelled until something is told; None: it was told already.
        """
        dial = Dial(secrets.token_bytes(DIAL_ID_SIZE), target, caller, time.monotonic())
        asked = self._ask_at_once(dial, wait, tell)
        if asked is None:
            tell(self._run(dial, wait, None))
        return asked

    def _ask_at_once(self, dial: Dial, wait: float, tell: Tell) -> Asked | None:
        """None, with nothing done that cannot be done again, if the dial has to be awaited."""
        if self.closed or self._plugins.judge_dials or self._plugins.resolve_dials:
            return None
        try:
            candidates = self._registry.resolve(dial.target)
            candidate = self._choose(dial, dial.target, candidates)
            session = candidate.session
            if not session.pool:
                return None
            self._check_streams(dial)
            self._admission.check_streams_of_agent(dial.target, session.streams)
            self._admission.check_dial(dial.target, dial.caller)
        except DialError:
            return None  # who awaits the dial is told
        asked = Asked(dial, wait, tell, self._answered)
        asked.connection = session.ask_parked(
            asked,
            candidate.port,
            dial.dial_id,
            extra={"whip": dial},
            on_finished=partial(self._closed, dial, candidate),
        )
        if asked.connection is None:
            return None
        session.streams += 1
        self._opening += 1
        patience = min(session.parked_patience(), self._timeout / min(len(candidates), ATTEMPTS))
        self._deadlines.add(asked, patience)
        return asked

    def _answered(self, asked: Asked, answer: Answer) -> None:
        dial = asked.dial
        assert dial.candidate is not None and asked.connection is not None
        session = dial.candidate.session
        self._deadlines.drop(asked)
        self._opening -= 1
        session.answered(asked.connection)
        if isinstance(answer, Stream):
            dial.parked = True
            self._is_open(dial, answer, time.monotonic() - asked.asked_at)
            self._opened(dial)
            asked.tell(answer)
            return
        session.streams -= 1
        if answer is not None:
            asked.tell(self._run(dial, asked.wait, None, answer))

    async def _run(
        self, dial: Dial, wait: float, timeout: float | None, after: Exception | None = None
    ) -> Stream:
        """The whole of a dial, or what is left `after` its first agent was asked at once."""
        opening = self._dial(dial, wait, self._timeout if timeout is None else timeout, after)
        return await self._told_of(dial, opening, goes_on=after is not None)

    async def relay(
        self,
        session: Session,
        port: int,
        *,
        target: Target,
        caller: Caller,
        timeout: float,
        relayed_for: str,
        relayed_dial: str,
    ) -> Stream:
        """A stream to `session`, which another broker has picked for its dial, and may dial.

        Like `dial` otherwise. The dial has an id of its own here: an agent that has failed
        the other's may still say so.
        """
        dial_id = secrets.token_bytes(DIAL_ID_SIZE)
        dial = Dial(dial_id, target, caller, time.monotonic(), relayed_for=relayed_for)
        dial.asked, dial.candidate = target, Candidate(session, port)
        logger.info("%s relays dial %s of the broker %s", dial, relayed_dial[:8], relayed_for)
        return await self._told_of(dial, self._open_to(dial, dial.candidate, timeout))

    async def _open_to(self, dial: Dial, candidate: Candidate[Session], timeout: float) -> Stream:
        self._check_streams(dial)
        return await self._open(dial, candidate, timeout, None)

    async def _told_of(
        self, dial: Dial, opening: Coroutine[None, None, Stream], *, goes_on: bool = False
    ) -> Stream:
        """What `opening` gives, within what is admitted; plugins and the log are told of it."""
        admitted = self._admission.dial(dial.target, dial.caller, goes_on=goes_on)
        try:
            with contextlib.closing(opening), admitted:
                stream = await opening
        except DialError as error:
            logger.info("%s failed: %s", dial, error)
            error.dial = dial.finished(error)
            self._plugins.dial_finished(error.dial)
            raise
        self._opened(dial)
        return stream

    def destination(self, host: str, port: int, caller: Caller) -> Destination | None:
        """Where a dial for `caller` has to lead; None if every caller's may lead anywhere.

        For who has a stream already, and another caller to serve on it. Opens nothing.
        Raises `DialError` if a plugin fails, or the name is unknown by now.
        """
        if not self._plugins.go_by_caller:
            return None
        try:
            target = Target.parse(host, port)
        except ValueError as error:
            raise UnknownName(str(error)) from error
        asked = self._plugins.resolve(target, caller)
        try:
            candidates = self._registry.resolve(asked)
        except UnknownName:
            if self.elsewhere is None:
                raise
            return None  # only a dial finds out
        if len(candidates) == 1:
            return Destination(asked, candidates.first().session.name)
        picked = self._plugins.pick_by_caller(asked, candidates.views, caller)
        return Destination(asked, picked.name if isinstance(picked, AgentView) else None)

    def resolves(self, host: str, port: int, caller: Caller) -> bool:
        """Whether a plugin has another target for it. Raises `DialError` if one fails."""
        if not self._plugins.resolve_dials:
            return False
        try:
            target = Target.parse(host, port)
        except ValueError:
            return False
        return self._plugins.resolve(target, caller) != target

    def _opened(self, dial: Dial) -> None:
        assert dial.candidate is not None and dial.outcome is not None
        outcome = dial.outcome
        logger.debug("%s: open to %s", dial, dial.candidate.session.name)
        self._plugins.dial_finished(outcome)

    async def _dial(
        self, dial: Dial, wait: float, timeout: float, after: Exception | None
    ) -> Stream:
        if dial.asked is None or dial.candidates is None:
            dial.asked = self._plugins.resolve(dial.target, dial.caller)
            dial.candidates = await self._resolve(dial.asked, dial.caller, wait)
            dial.resolve_seconds = time.monotonic() - dial.started
        asked, candidates = dial.asked, dial.candidates
        wait_until = dial.started + wait
        deadline = dial.started + dial.resolve_seconds + timeout
        tried: set[Session] = set()
        candidate = dial.candidate
        while True:
            if candidate is None:
                candidate = self._choose(dial, asked, candidates, tried)
            tried.add(candidate.session)
            if after is None and self._plugins.judge_dials:
                judging = time.monotonic()
                await self._authorize(asked, candidate, dial.caller, deadline - judging)
                dial.pick_seconds += time.monotonic() - judging
            patience = (deadline - time.monotonic()) / min(len(candidates), ATTEMPTS)
            self._check_streams(dial)  # here, as no other agent would do
            try:
                return await self._open(dial, candidate, patience, after)
            except DialError as error:
                if not isinstance(error, Busy):  # then it was not even asked
                    dial.failed.append(FailedAttempt(candidate.session.view(), error))
                if len(tried) >= MOST_TRIED:
                    raise
                untried = await self._untried(asked, dial.caller, tried)
                if time.monotonic() >= deadline:
                    raise
                if untried is not None:
                    candidates = untried
                    logger.warning("%s: %s; trying another agent", dial, error)
                else:
                    waiting, left = time.monotonic(), wait_until - time.monotonic()
                    if left <= 0 or not (isinstance(error, MayReturn) or candidate.session.ended):
                        raise
                    logger.warning("%s: %s; waiting for it to come back", dial, error)
                    try:
                        candidates = await self._resolve(asked, dial.caller, left)
                    except UnknownName:
                        raise error from None
                    deadline += time.monotonic() - waiting
                    tried.clear()
            candidate = after = None

    async def _untried(
        self, target: Target, caller: Caller, tried: set[Session]
    ) -> Candidates[Session] | None:
        """Who else may serve `target` by now; an agent that came back is another session."""
        try:
            return self._registry.resolve(target, tried)
        except (UnknownName, PortNotExposed):
            return await self._find_elsewhere(target, caller, tried)

    async def _find_elsewhere(
        self, target: Target, caller: Caller, tried: Collection[Session]
    ) -> Candidates[Session] | None:
        if self.elsewhere is None:
            return None
        try:
            return await self.elsewhere.find(target, caller, tried)
        except PortNotExposed:
            if tried:
                return None
            raise

    async def _resolve(self, target: Target, caller: Caller, wait: float) -> Candidates[Session]:
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            if self.closed:
                raise BrokerClosed(f"{target}: the broker is shutting down")
            try:
                return self._registry.resolve(target)
            except UnknownName:
                changed = self._changed
                if found := await self._find_elsewhere(target, caller, ()):
                    return found
                now = asyncio.get_running_loop().time()
                if now >= deadline:
                    raise
                again = deadline if self.elsewhere is None else min(deadline, now + SEEK_INTERVAL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(again):
                        await changed.wait()

    def _choose(
        self,
        dial: Dial,
        target: Target,
        candidates: Candidates[Session],
        tried: Collection[Session] = (),
    ) -> Candidate[Session]:
        """The candidate to try next, and how long it took to find out."""
        began = time.monotonic()
        if dial.candidates is None:
            dial.asked, dial.candidates = target, candidates
            dial.resolve_seconds = began - dial.started
        dial.candidate = self._pick(target, candidates, dial.caller, tried)
        dial.pick_seconds += time.monotonic() - began
        return dial.candidate

    def _pick(
        self,
        target: Target,
        candidates: Candidates[Session],
        caller: Caller,
        tried: Collection[Session] = (),
    ) -> Candidate[Session]:
        if len(candidates) == 1:
            return candidates.first()
        picked = self._plugins.pick(target, candidates.views, caller)
        agent = picked.agent
        if isinstance(agent, AgentView):
            candidate = self._registry.candidate(target, agent.name) or next(
                (each for each in candidates if each.session.session_id == agent.session_id), None
            )
            if (
                candidate is not None
                and candidate.session.session_id == agent.session_id
                and candidate.session not in tried
            ):
                return candidate
        raise picked.refused(target)

    async def _authorize(
        self, target: Target, candidate: Candidate[Session], caller: Caller, timeout: float
    ) -> None:
        try:
            async with asyncio.timeout(timeout):
                reason = await self._plugins.veto_of_dial(target, candidate.session.view(), caller)
        except TimeoutError as error:
            raise DialTimeout(f"{target}: the plugins did not decide in time") from error
        if reason is not None:
            raise NotAuthorized(f"{target}: not allowed: {reason}")

    def _check_streams(self, dial: Dial) -> None:
        """Raises `Busy` if the broker has no room for another stream, whichever agent's."""
        self._admission.check_streams(dial.target, len(self._streams) + self._opening)

    async def _open(
        self,
        dial: Dial,
        candidate: Candidate[Session],
        timeout: float,
        after: Exception | None,
    ) -> Stream:
        session = candidate.session
        started = time.monotonic()
        self._admission.check_streams_of_agent(dial.target, session.streams)
        # From here on, or many dials at the same time would all see it idle and pick it.
        session.streams += 1
        self._opening += 1
        try:
            stream = await self._ask(dial, candidate, timeout, after)
        except BaseException:
            session.streams -= 1
            raise
        finally:
            self._opening -= 1
        self._is_open(dial, stream, time.monotonic() - started)
        if stream.cause is not None:
            self._closed(dial, candidate, stream)
        return stream

    def _is_open(self, dial: Dial, stream: Stream, seconds: float) -> None:
        dial.open_seconds = seconds
        self._streams.add(stream)
        dial.outcome = dial.finished(None)
        self._plugins.stream_opened(dial.outcome)

    async def _ask(
        self,
        dial: Dial,
        candidate: Candidate[Session],
        timeout: float,
        after: Exception | None,
    ) -> Stream:
        session = candidate.session
        try:
            stream, dial.parked = await session.open(
                candidate.port,
                dial.dial_id,
                timeout=timeout,
                extra={"whip": dial},
                on_finished=partial(self._closed, dial, candidate),
                after=after,
            )
        except Busy as error:  # the broker that relays is
            raise Busy(f"{dial.target}: {error}", reason=error.reason) from error
        except DialError as error:
            raise type(error)(f"{dial.target}: {error}") from error
        except TimeoutError as error:
            raise DialTimeout(
                f"{dial.target}: no answer from agent {session.name} within {timeout:.1f} s"
            ) from error
        return stream

    def _closed(self, dial: Dial, candidate: Candidate[Session], stream: Stream) -> None:
        if dial.open_seconds is None:
            return  # it ended before anybody had it: if the dial is not cancelled, `_open` goes on
        session = candidate.session
        session.streams -= 1
        self._streams.discard(stream)
        if not self._streams:
            self._quiet.set()
        assert stream.cause is not None and dial.outcome is not None
        seconds = time.monotonic() - dial.started
        logger.info(
            "%s: to %s port %d in %.1f ms%s, closed (%s) after %.1f s, %d bytes there, %d back",
            dial,
            session.name,
            candidate.port,
            dial.outcome.total_seconds * 1000,
            _by_which_way(dial),
            stream.cause,
            seconds,
            stream.bytes_sent,
            stream.bytes_received,
        )
        self._plugins.stream_closed(
            StreamClosed(
                dial_id=dial.dial_id.hex(),
                agent=session.name,
                port=candidate.port,
                caller=dial.caller,
                bytes_to_agent=stream.bytes_sent,
                bytes_from_agent=stream.bytes_received,
                seconds=seconds,
                cause=stream.cause,
            )
        )


def _by_which_way(dial: Dial) -> str:
    if dial.relayed_by:
        return f", relayed by the broker {dial.relayed_by}"
    return ", parked" if dial.parked else ""
