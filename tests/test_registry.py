"""Who holds which name, and who may serve a dial."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from whip_core import registry
from whip_core.agents import AgentView
from whip_core.candidates import exposed_port
from whip_core.errors import PortNotExposed, UnknownName
from whip_core.names import AgentName, Target, normalize
from whip_core.registry import Contested, Joined, Registry


@dataclass(eq=False)
class Agent:
    name: AgentName
    ports: tuple[int, ...] = (80,)
    instance_id: str = ""
    draining: bool = False
    ejected: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    session_id: str = ""

    def view(self) -> AgentView:
        raise NotImplementedError


def agent(full_name: str, *ports: int, instance_id: str = "") -> Agent:
    """`instance1.testdom`; where the hostname has dots, a slash ends it."""
    hostname, _, domain = full_name.partition("/" if "/" in full_name else ".")
    return Agent(AgentName.parse(hostname, domain), ports or (80,), instance_id)


def registry_of(*agents: Agent) -> Registry[Agent]:
    made: Registry[Agent] = Registry()
    for each in agents:
        assert isinstance(made.register(each), Joined)
    return made


def serving(made: Registry[Agent], name: str, port: int = 80) -> list[tuple[Agent, int]]:
    found = made.resolve(Target.parse(name, port))
    return [(candidate.session, candidate.port) for candidate in found]


# Resolving


def test_an_instance_is_found_by_its_full_name() -> None:
    one, two = agent("instance1.testdom"), agent("instance2.testdom")
    assert serving(registry_of(one, two), "instance2.testdom") == [(two, 80)]


def test_a_domain_is_served_by_all_its_agents_in_the_order_of_registration() -> None:
    agents = [agent(f"instance{number}.testdom") for number in (3, 1, 2)]
    made = registry_of(*agents, agent("instance1.otherdom"))
    assert serving(made, "testdom") == [(each, 80) for each in agents]


def test_case_a_trailing_dot_and_the_form_of_an_international_name_do_not_matter() -> None:
    one = agent("instance1.bücher.example")
    for name in ("INSTANCE1.Bücher.Example.", "instance1.xn--bcher-kva.example"):
        assert serving(registry_of(one), name) == [(one, 80)]


def test_a_hostname_may_have_dots() -> None:
    one = agent("a.b/testdom")
    made = registry_of(one)
    assert serving(made, "a.b.testdom") == serving(made, "testdom") == [(one, 80)]
    with pytest.raises(UnknownName):
        serving(made, "b.testdom")


def test_an_instance_of_the_full_name_goes_before_a_domain_of_the_same_name() -> None:
    instance, member = agent("a.testdom"), agent("x/a.testdom")
    assert serving(registry_of(member, instance), "a.testdom") == [(instance, 80)]


def test_only_agents_that_expose_the_port_are_candidates() -> None:
    one, two = agent("one.testdom", 22, 80), agent("two.testdom", 22)
    made = registry_of(one, two)
    assert serving(made, "testdom", 22) == [(one, 22), (two, 22)]
    assert serving(made, "testdom", 80) == [(one, 80), (two, 22)]
    with pytest.raises(PortNotExposed, match=r"does not expose port 81 \(exposed: 22, 80\)"):
        serving(made, "testdom", 81)


def test_a_draining_agent_takes_no_new_connections() -> None:
    one, two = agent("one.testdom"), agent("two.testdom")
    made = registry_of(one, two)
    one.draining = True
    assert serving(made, "testdom") == [(two, 80)]
    with pytest.raises(UnknownName, match="draining"):
        serving(made, "one.testdom")


@pytest.mark.parametrize(
    ("exposed", "asked", "given"),
    [
        ((5051,), 5051, 5051),
        ((5051,), 80, 5051),
        ((5051,), 443, 5051),
        ((5051,), 8080, None),
        ((80,), 443, 80),
        ((80, 443), 443, 443),
        ((5051, 5052), 80, None),
        ((443, 5051), 80, None),
        ((), 80, None),
    ],
)
def test_a_schemes_default_port_falls_to_the_only_port_there_is(
    exposed: tuple[int, ...], asked: int, given: int | None
) -> None:
    assert exposed_port(exposed, asked) == given


# What is kept between two dials


def test_candidates_are_the_same_object_until_somebody_comes_or_goes() -> None:
    one, two, three = (agent(f"{name}.testdom") for name in ("one", "two", "three"))
    made = registry_of(one, two)
    target = Target.parse("testdom", 80)
    found = made.resolve(target)
    assert made.resolve(target) is found
    assert made.resolve(target).views is found.views
    made.register(three)
    assert serving(made, "testdom") == [(one, 80), (two, 80), (three, 80)]
    made.remove(one)
    assert serving(made, "testdom") == [(two, 80), (three, 80)]
    assert len(found) == 2, "what a dial has in its hands does not change"
    made.remove(two)
    made.remove(three)
    with pytest.raises(UnknownName):
        serving(made, "testdom")


def test_who_comes_later_is_a_candidate_only_for_the_ports_it_exposes() -> None:
    one = agent("one.testdom", 22, 80)
    made = registry_of(one)
    assert serving(made, "testdom", 22) == [(one, 22)]
    assert serving(made, "testdom", 80) == [(one, 80)]
    two = agent("two.testdom", 22)
    made.register(two)
    assert serving(made, "testdom", 22) == [(one, 22), (two, 22)]
    assert serving(made, "testdom", 80) == [(one, 80), (two, 22)]
    made.remove(two)
    assert serving(made, "testdom", 80) == [(one, 80)]


def test_who_begins_to_drain_between_two_dials_is_left_out() -> None:
    one, two = agent("one.testdom"), agent("two.testdom")
    made = registry_of(one, two)
    assert len(made.resolve(Target.parse("testdom", 80))) == 2
    one.draining = True
    made.standing_changed(one)
    assert serving(made, "testdom") == [(two, 80)]


def test_candidates_are_kept_for_so_many_ports_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_KEPT_PORTS", 2)
    made = registry_of(agent("one.testdom", 1, 2, 3), agent("two.testdom", 1, 2, 3))
    first = [made.resolve(Target.parse("testdom", port)) for port in (1, 2, 3)]
    again = [made.resolve(Target.parse("testdom", port)) for port in (3, 2, 1)]
    assert [again[0] is first[2], again[1] is first[1], again[2] is first[0]] == [True, True, False]


def test_an_instance_that_drains_goes_or_is_replaced_is_not_found_by_its_name_any_more() -> None:
    one, again = agent("one.testdom"), agent("one.testdom", instance_id="again")
    made = registry_of(one)
    target = Target.parse("one.testdom", 80)
    assert made.resolve(target) is made.resolve(target)
    one.draining = True
    made.standing_changed(one)
    with pytest.raises(UnknownName, match="draining"):
        made.resolve(target)
    made.take_over(again)
    assert [found.session for found in made.resolve(target)] == [again]
    made.remove(again)
    with pytest.raises(UnknownName):
        made.resolve(target)


def test_who_has_been_tried_is_left_out_of_one_dial_and_no_other() -> None:
    one, two = agent("one.testdom"), agent("two.testdom")
    made = registry_of(one, two)
    target = Target.parse("testdom", 80)
    assert [found.session for found in made.resolve(target, {one})] == [two]
    assert len(made.resolve(target)) == 2
    with pytest.raises(UnknownName):
        made.resolve(target, {one, two})


# Ejected


def test_an_ejected_agent_is_left_out_of_its_domain_but_not_of_its_own_name() -> None:
    one, two = agent("one.testdom"), agent("two.testdom")
    made = registry_of(one, two)
    one.ejected = True
    assert serving(made, "testdom") == [(two, 80)]
    assert serving(made, "one.testdom") == [(one, 80)]


def test_where_all_others_have_failed_or_lack_the_port_the_ejected_are_tried() -> None:
    one, two = agent("one.testdom", 22), agent("two.testdom", 80, 443)
    made = registry_of(one, two)
    one.ejected = True
    assert serving(made, "testdom", 22) == [(one, 22)]
    two.ports = (22,)
    target = Target.parse("testdom", 22)
    assert [found.session for found in made.resolve(target, {two})] == [one]


# What an error says


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("instanc1.testdom", "names like it: instance1.testdom"),
        ("something-else-entirely.testdom", "agents of its domain are registered, this one is not"),
        ("elsewhere.example", "registered agents: 1, none with a name like it"),
    ],
)
def test_an_unknown_name_says_what_is_known(name: str, said: str) -> None:
    with pytest.raises(UnknownName, match=said) as raised:
        serving(registry_of(agent("instance1.testdom")), name)
    assert str(raised.value).startswith(f"{name}:80: ")


def test_a_port_that_is_not_exposed_says_a_few_that_are() -> None:
    made = registry_of(agent("one.testdom", *range(1000, 1020)))
    with pytest.raises(PortNotExposed, match=r"exposed: 1000, .* 1007, …\)"):
        serving(made, "one.testdom", 22)


# The same name twice


def test_an_agent_that_comes_back_replaces_its_old_session_at_once() -> None:
    old, new = agent("one.testdom", instance_id="i"), agent("one.testdom", instance_id="i")
    made = registry_of(old)
    assert made.register(new) == Joined(replaced=old)
    assert serving(made, "one.testdom") == serving(made, "testdom") == [(new, 80)]


@pytest.mark.parametrize(("theirs", "ours"), [("i", "j"), ("", ""), ("i", ""), ("", "j")])
def test_another_instance_has_to_contest_the_name(theirs: str, ours: str) -> None:
    holder = agent("one.testdom", instance_id=theirs)
    claimant = agent("one.testdom", instance_id=ours)
    made = registry_of(holder)
    assert made.register(claimant) == Contested(holder)
    assert serving(made, "one.testdom") == [(holder, 80)]
    assert made.take_over(claimant) == Joined(replaced=holder)
    assert serving(made, "one.testdom") == [(claimant, 80)]


def test_the_same_full_name_split_otherwise_is_the_same_name() -> None:
    one, other = agent("a.b/testdom"), agent("a/b.testdom")
    made = registry_of(one)
    assert made.register(other) == Contested(one)
    made.take_over(other)
    assert (len(made), list(made)) == (1, [other])
    with pytest.raises(UnknownName):
        serving(made, "testdom")
    assert serving(made, "b.testdom") == [(other, 80)]


def test_an_old_session_that_ends_does_not_remove_its_successor() -> None:
    old, new = agent("one.testdom", instance_id="i"), agent("one.testdom", instance_id="i")
    made = registry_of(old)
    made.register(new)
    assert not made.remove(old)
    assert serving(made, "one.testdom") == [(new, 80)]
    assert made.remove(new)
    assert not made.remove(new)
    assert len(made) == 0


def test_a_session_that_is_removed_is_found_no_more() -> None:
    one, two = agent("one.testdom"), agent("two.testdom")
    made = registry_of(one, two)
    made.remove(one)
    assert made.get("one.testdom") is None
    assert made.get("two.testdom") is two
    assert serving(made, "testdom") == [(two, 80)]
    with pytest.raises(UnknownName):
        serving(made, "one.testdom")


def test_sessions_may_leave_while_they_are_gone_through() -> None:
    made = registry_of(agent("one.testdom"), agent("two.testdom"))
    for session in made:
        made.remove(session)
    assert list(made) == []


# Which names are ours


def test_a_name_is_ours_while_it_is_registered_and_its_domain_for_ever() -> None:
    one = agent("one.deep.testdom")
    made = registry_of(one)
    made.remove(one)
    ours = ("deep.testdom", "one.deep.testdom", "never.seen.deep.testdom")
    assert all(made.is_ours(normalize(name)) for name in ours)
    for name in ("testdom", "other.testdom", "notdeep.testdom", "example.com"):
        assert not made.is_ours(name)


def test_only_so_many_domains_are_remembered_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "MAX_REMEMBERED_DOMAINS", 2)
    made = registry_of(agent("a.first"), agent("a.second"), agent("b.first"))
    for each in list(made):
        made.remove(each)
    made.register(agent("a.third"))
    assert [made.is_ours(f"x.{name}") for name in ("first", "second", "third")] == [
        True,
        False,
        True,
    ]
