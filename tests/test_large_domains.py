"""A dial of a domain with very many agents does not hold up everybody else."""

from __future__ import annotations

import pytest

from whip_core import registry as registries
from whip_core import session as sessions
from whip_core.agents import AgentView, Peer, Registration
from whip_core.awaited import Awaited
from whip_core.caller import Caller
from whip_core.candidates import exposed_port
from whip_core.control import BrokerMessage
from whip_core.dialer import Dialer
from whip_core.errors import RegistrationError
from whip_core.names import AgentName, Target
from whip_core.picker_choice import make_picker
from whip_core.plugins import Plugins
from whip_core.registry import Registry
from whip_core.session import Session

AGENTS = 5_000
PICKS = 50


class Sender:
    peer = Peer(("192.0.2.1", 50000), ())

    def send(self, message: BrokerMessage) -> None: ...
    def end(self, why: RegistrationError | None = None) -> None: ...


def session(number: int) -> Session:
    name = AgentName.parse(f"instance{number}", "testdom")
    said = Registration(name, (80,), {}, f"instance {number}", 1, "1")
    made = Session(Sender(), said, ("localhost", 8000), Awaited())
    made.control.state = sessions.State.REGISTERED
    return made


@pytest.mark.parametrize("picker", ["random", "round-robin", "two-choices", "lowest-rtt", "sticky"])
def test_few_views_are_made_for_a_pick(picker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Session] = Registry()
    for number in range(AGENTS):
        registry.register(session(number))
    dialer = Dialer(registry, Plugins([make_picker(picker)]), 1.0)
    target = Target("testdom", 80)
    dialer._pick(target, registry.resolve(target), Caller(proxy_user="first"))
    looked_at: list[str] = []
    view = Session.view

    def counted(self: Session) -> AgentView:
        looked_at.append(self.name.full)
        return view(self)

    def checking(exposed: tuple[int, ...], asked: int) -> int | None:
        checked.append(asked)
        return exposed_port(exposed, asked)

    checked: list[int] = []
    monkeypatch.setattr(Session, "view", counted)
    monkeypatch.setattr(registries, "exposed_port", checking)
    for number in range(PICKS):
        dialer._pick(target, registry.resolve(target), Caller(proxy_user=str(number)))
    assert len(looked_at) <= 2 * PICKS
    assert len(checked) <= PICKS, "who exposes the port is known from the first dial"
