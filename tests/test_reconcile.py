"""Which brokers to join and to leave."""

from __future__ import annotations

from client_agent.endpoints import Address, Endpoint
from client_agent.reconcile import Change, reconcile

EAST = Endpoint("east.example.com", 50051)
WEST = Endpoint("west.example.com", 50051)
ONE, TWO, THREE = (Address(f"10.0.0.{n}", 50051) for n in (1, 2, 3))
NOTHING = Change(join={}, leave=frozenset())


def test_everything_is_joined_at_first() -> None:
    change = reconcile({EAST: {ONE, TWO}}, held={})

    assert change == Change(join={ONE: EAST, TWO: EAST}, leave=frozenset())


def test_what_is_new_is_joined_and_what_vanished_is_left() -> None:
    change = reconcile({EAST: {TWO, THREE}}, held={ONE: EAST, TWO: EAST})

    assert change == Change(join={THREE: EAST}, leave=frozenset({ONE}))


def test_the_same_answer_again_changes_nothing() -> None:
    assert reconcile({EAST: {ONE, TWO}}, held={ONE: EAST, TWO: EAST}) == NOTHING


def test_the_same_ip_on_another_port_is_another_broker() -> None:
    moved = Address(ONE.ip, 50052)

    change = reconcile({EAST: {moved}}, held={ONE: EAST})

    assert change == Change(join={moved: EAST}, leave=frozenset({ONE}))


def test_an_empty_answer_changes_nothing() -> None:
    assert reconcile({EAST: set()}, held={ONE: EAST}) == NOTHING


def test_an_empty_answer_of_one_endpoint_keeps_only_what_is_held_for_it() -> None:
    change = reconcile({EAST: set(), WEST: {THREE}}, held={ONE: EAST, TWO: WEST})

    assert change == Change(join={THREE: WEST}, leave=frozenset({TWO}))


def test_an_address_of_two_endpoints_is_joined_once_for_the_first() -> None:
    change = reconcile({WEST: {ONE}, EAST: {ONE, TWO}}, held={})

    assert change == Change(join={ONE: WEST, TWO: EAST}, leave=frozenset())


def test_an_address_that_another_endpoint_still_gives_is_not_left() -> None:
    assert reconcile({EAST: {TWO}, WEST: {ONE}}, held={ONE: EAST, TWO: EAST}) == NOTHING
