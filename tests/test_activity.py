"""What is remembered of dials and agents, and that it has an end."""

from __future__ import annotations

from agent_views import view
from whip_core.activity import EVENTS, ROUND_TRIPS, Activity
from whip_core.agents import DialFinished, StreamClosed
from whip_core.caller import NOBODY, Caller, HttpRequest
from whip_core.errors import DialError, UnknownName
from whip_core.names import Target

SECRET = HttpRequest("GET", "http", "a.testdom", "/?token=secret", {"authorization": "secret"})


def dial(error: DialError | None = None, caller: Caller = NOBODY) -> DialFinished:
    return DialFinished(
        dial_id="0123456789abcdef",
        target=Target("a.testdom", 80),
        caller=caller,
        agent=view("a") if error is None else None,
        port=80,
        error=error,
        parked=True,
        resolve_seconds=0.0,
        open_seconds=0.0,
        total_seconds=0.001234,
    )


def test_a_flood_of_one_kind_pushes_out_no_other_and_has_an_end() -> None:
    activity = Activity()
    activity.whip_agent_joined(view("a"))
    activity.whip_dial_finished(dial(UnknownName("nobody")))
    for _ in range(10 * EVENTS):
        activity.whip_dial_finished(dial())
    kinds = [event.kind for event in activity.events()]
    assert kinds == ["joined", "failure", *["dial"] * EVENTS]
    assert activity.latest == 10 * EVENTS + 2
    assert [event.number for event in activity.events(after=activity.latest - 2)] == [
        activity.latest - 1,
        activity.latest,
    ]
    assert [event.kind for event in activity.events(limit=1)] == ["joined", "failure", "dial"]


def test_texts_of_peers_have_an_end_and_no_control_characters() -> None:
    activity = Activity()
    activity.whip_dial_finished(dial(DialError("\x1b[2J\n" + "x" * 10_000)))
    activity.whip_agent_left(view("a"), "\x07" + "y" * 10_000)
    for event in activity.events():
        told = event.as_dict()
        text = told.get("error") or told["reason"]
        assert text.isprintable()
        assert len(text) < 600


def test_who_asked_is_told_and_nothing_of_the_request() -> None:
    activity = Activity()
    activity.whip_dial_finished(dial(caller=Caller(("10.1.2.3", 5), "ada\n", request=SECRET)))
    activity.whip_dial_finished(dial(caller=Caller(proxy_user="ada")))
    activity.whip_dial_finished(dial())
    told = [event.as_dict() for event in activity.events()]
    assert [event["caller"] for event in told] == ["ada? from 10.1.2.3", "ada", None]
    assert told[0]["ms"] == 1.23
    assert "secret" not in str(activity.events())


def test_an_agents_record_is_bounded_and_begins_anew_with_its_registration() -> None:
    activity = Activity()
    activity.whip_agent_joined(view("a"))
    for number in range(2 * ROUND_TRIPS):
        activity.whip_round_trip(view("a"), number / 4)
    assert activity.round_trips("a.testdom") == tuple(
        number / 4 for number in range(ROUND_TRIPS, 2 * ROUND_TRIPS)
    )
    closed = StreamClosed("id", view("a").name, 80, Caller(), 3, 4, 1.0, "end")
    activity.whip_stream_closed(closed)
    activity.whip_stream_closed(closed)
    assert activity.finished_bytes("a.testdom") == (6, 8)
    activity.whip_agent_left(view("a"), "gone")
    activity.whip_stream_closed(closed)  # of a session that has ended
    assert activity.finished_bytes("a.testdom") == (0, 0)
    activity.whip_agent_joined(view("a"))
    assert activity.round_trips("a.testdom") == ()
