"""Sessions of a broker and what agents, and strangers, send them: any message at any time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from whip_core import control
from whip_core.control_state import (
    AGENT_SIDE,
    BROKER_SIDE,
    MAX_PINGS_OUTSTANDING,
    ControlState,
    RoundTrips,
    State,
)
from whip_core.control_wire import (
    MAX_TEXT_LENGTH,
    decode_agent_message,
    decode_broker_message,
    encode_agent_message,
    encode_broker_message,
)
from whip_core.errors import RemoteProtocolError

TEXT = st.text(max_size=40)
NUMBER = st.integers(0, 2**31 - 1)
TIME = st.integers(-(10**18), 10**18)
NAME = st.sampled_from(["instance1", "", "\n", "x" * 2000])
FROM_AGENT = st.one_of(
    st.builds(control.Register, NAME, NAME, st.lists(NUMBER, max_size=3).map(tuple)),
    st.builds(control.ConnectFailed, TEXT, TEXT),
    st.builds(control.Pong, st.integers(0, 20), TIME, TIME),
    st.builds(control.Draining, TEXT),
)
FROM_BROKER = st.one_of(
    st.builds(control.Registered, NUMBER, NAME, NAME, NAME, NAME, NUMBER, NAME),
    st.builds(control.AlreadyRegistered, NAME),
    st.builds(control.Connect, NAME, NAME, NUMBER, NUMBER),
    st.builds(control.Ping, NUMBER, TIME),
    st.builds(control.Park, NUMBER),
    st.builds(control.Draining, NAME),
)


class Ends(RuleBasedStateMachine):
    """Both ends at once, each of which hears a peer that follows no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.reconnect()

    def reconnect(self) -> None:
        self.broker, self.agent = ControlState(BROKER_SIDE), ControlState(AGENT_SIDE)
        self.trips, self.now = RoundTrips(), 0.0
        self.pings: dict[int, float] = {}

    def hear(
        self, side: ControlState, message: control.AgentMessage | control.BrokerMessage | None
    ) -> bool:
        """Whether it was taken; what is refused changes nothing, as nothing follows it."""
        before = side.state
        if message is None:
            return False
        try:
            side.receive(message)
        except RemoteProtocolError:
            assert side.state is before
            return False
        assert before is not State.ENDED
        return True

    @rule(message=FROM_AGENT)
    def agent_says(self, message: control.AgentMessage) -> None:
        told = decode_agent_message(encode_agent_message(message))
        assert type(told) is type(message)
        if self.hear(self.broker, told) and isinstance(told, control.Pong):
            self.now += 1
            sent = self.pings.pop(told.sequence, None)
            trip = self.trips.pong(told, self.now)
            assert trip is None or (sent is not None and trip == self.now - sent > 0)

    @rule(message=FROM_BROKER)
    def broker_says(self, message: control.BrokerMessage) -> None:
        told = decode_broker_message(encode_broker_message(message))
        assert type(told) is type(message)
        self.hear(self.agent, told)
        for name in ("reason", "host", "reverse_host", "connection_id", "broker_id"):
            text = getattr(told, name, "")
            assert text.isprintable()
            assert len(text) <= MAX_TEXT_LENGTH + 1

    @rule(data=st.binary(max_size=200))
    def anybody_says(self, data: bytes) -> None:
        for side, decode in (
            (self.broker, decode_agent_message),
            (self.agent, decode_broker_message),
        ):
            try:
                message = decode(data)
            except RemoteProtocolError:
                continue
            if not isinstance(message, control.Pong):
                self.hear(side, message)

    @precondition(lambda self: self.broker.state in (State.REGISTERED, State.DRAINING))
    @rule()
    def ping(self) -> None:
        self.now += 1
        self.pings[self.trips.ping(self.now, 0).sequence] = self.now

    @rule()
    def end(self) -> None:
        for side in (self.broker, self.agent):
            side.end()

    @precondition(lambda self: self.broker.state is State.ENDED)
    @rule()
    def connect_again(self) -> None:
        self.reconnect()

    @invariant()
    def what_is_kept_has_a_bound(self) -> None:
        assert len(self.trips._sent) <= MAX_PINGS_OUTSTANDING

    @invariant()
    def nobody_is_registered_who_has_not_said_so(self) -> None:
        assert self.broker.state in BROKER_SIDE
        assert self.agent.state in AGENT_SIDE


Ends.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestEnds = Ends.TestCase
