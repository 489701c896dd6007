"""gRPC's calls on an HTTP/2 connection, as a conversation with the h2 package's client."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from h2 import events as http2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from whip_core import grpc_calls
from whip_core.errors import RemoteProtocolError
from whip_core.grpc_calls import CallBegan, CallEnded, Event, GrpcCalls, MessageArrived

PATH = "/v1.Whip/Register"
MOST = 1000
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "broker"),
    ("content-type", "application/grpc+proto"),
    ("te", "trailers"),
]


class Client:
    """A client and the server it talks to; what the client hears is in `heard`."""

    def __init__(self, **settings: int) -> None:
        self.http2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http2.initiate_connection()
        if settings:
            codes = {SettingCodes[name]: value for name, value in settings.items()}
            self.http2.update_settings(codes)
        self.server = GrpcCalls(PATH, MOST)
        self.heard: list[Any] = []
        self.said: list[Event] = []

    def talk(self) -> list[Event]:
        """Pass everything on, both ways; what the server makes of it."""
        new: list[Event] = []
        while True:
            to_server, to_client = self.http2.data_to_send(), self.server.to_send()
            if not (to_server or to_client):
                self.said += new
                return new
            if to_server:
                new += self.server.receive(to_server)
            if to_client:
                self.heard += self.http2.receive_data(to_client)

    def call(self, headers: list[tuple[str, str]] = HEADERS) -> int:
        call = self.http2.get_next_available_stream_id()
        self.http2.send_headers(call, headers)
        return int(call)

    def begun(self) -> int:
        call = self.call()
        assert self.talk() == [CallBegan(call)]
        return call

    def data(self, call: int) -> bytes:
        return b"".join(
            each.data
            for each in self.heard
            if isinstance(each, http2.DataReceived) and each.stream_id == call
        )

    def status(self, call: int) -> tuple[str, str]:
        """gRPC's status and text, wherever they came; empty while there are none."""
        said: dict[str, str] = {}
        for each in self.heard:
            if isinstance(each, (http2.ResponseReceived, http2.TrailersReceived)):
                said |= dict(each.headers) if each.stream_id == call else {}
        return said.get("grpc-status", ""), unquote(said.get("grpc-message", ""))


def framed(message: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


# Messages


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 100])
def test_messages_arrive_however_they_are_cut(size: int) -> None:
    client = Client()
    call = client.begun()
    messages = [b"one", b"", b"x" * MOST]
    stream = b"".join(map(framed, messages))
    for start in range(0, len(stream), size):
        client.http2.send_data(call, stream[start : start + size])
        client.talk()
    assert client.said[1:] == [MessageArrived(call, message) for message in messages]


def test_an_answer_begins_with_headers_and_ends_with_a_status() -> None:
    client = Client()
    call = client.begun()
    assert client.server.send(call, b"one")
    assert client.server.send(call, b"two")
    client.talk()
    [answer] = [each for each in client.heard if isinstance(each, http2.ResponseReceived)]
    assert dict(answer.headers)[":status"] == "200"
    assert dict(answer.headers)["content-type"] == "application/grpc"
    assert client.data(call) == framed(b"one") + framed(b"two")
    assert client.status(call) == ("", "")
    client.server.end(call, grpc_calls.ABORTED, "100 % naïve\r\nx")
    client.talk()
    assert client.status(call) == ("10", "100 % naïve\r\nx")


def test_a_call_that_was_not_answered_ends_with_its_status_alone() -> None:
    client = Client()
    call = client.begun()
    client.server.end(call, grpc_calls.PERMISSION_DENIED, "no")
    client.talk()
    assert client.status(call) == ("7", "no")
    assert not any(isinstance(each, http2.TrailersReceived) for each in client.heard)


def test_a_call_that_we_end_is_not_heard_any_more_and_may_be_ended_again() -> None:
    client = Client()
    call = client.begun()
    client.http2.send_data(call, framed(b"too late"))
    client.server.end(call, grpc_calls.OK)
    client.server.end(call, grpc_calls.ABORTED, "again")
    assert client.server.send(call, b"dropped")
    assert client.talk() == []
    assert client.status(call) == ("0", "")
    [reset] = [each for each in client.heard if isinstance(each, http2.StreamReset)]
    assert reset.error_code == 0


def test_who_ends_a_call_over_a_message_hears_none_after_it() -> None:
    client = Client()
    call = client.begun()
    client.http2.send_data(call, framed(b"one") + framed(b"two"))
    heard = []
    for event in client.server.receive(client.http2.data_to_send()):
        heard.append(event)
        client.server.end(call, grpc_calls.OK)
    assert heard == [MessageArrived(call, b"one")]


# Ends


def test_a_clients_end_is_told_apart_from_its_breaking_off() -> None:
    client = Client()
    call, other = client.begun(), client.begun()
    client.http2.end_stream(call)
    client.http2.reset_stream(other)
    assert client.talk() == [CallEnded(call), CallEnded(other, "it was broken off")]
    assert client.server.send(call, b"still there")
    assert client.server.send(other, b"dropped")
    client.server.end(other, grpc_calls.OK)
    client.talk()
    assert client.data(call) == framed(b"still there")
    assert client.data(other) == b""


def test_a_client_that_says_goodbye_has_broken_all_its_calls_off() -> None:
    client = Client()
    calls = [client.begun(), client.begun()]
    client.http2.close_connection()
    assert client.talk() == [CallEnded(call, "it was broken off") for call in calls]
    for call in calls:
        assert client.server.send(call, b"dropped")
        client.server.end(call, grpc_calls.OK)
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
    assert list(client.server.receive(ping)) == []


@pytest.mark.parametrize("goes", ["resets", "leaves"])
@pytest.mark.parametrize("began", [True, False])
def test_nothing_is_said_to_a_call_that_is_gone_by_the_end_of_what_was_read(
    goes: str, began: bool
) -> None:
    """It is told of before: the message that came first is answered by whoever hears it."""
    client = Client()
    call = client.begun() if began else client.call()
    client.http2.send_data(call, framed(b"bye"), end_stream=True)
    if goes == "resets":
        client.http2.reset_stream(call)
    else:
        client.http2.close_connection()
    heard = []
    for event in client.server.receive(client.http2.data_to_send()):
        heard.append(event)
        assert client.server.send(call, b"answer")
        if event == CallEnded(call):
            client.server.end(call, grpc_calls.OK)
    assert heard[-2:] == [MessageArrived(call, b"bye"), CallEnded(call)]
    client.talk()


def test_goodbye_is_said_once_nothing_more_is_read() -> None:
    client = Client()
    call = client.begun()
    client.server.close()
    assert client.server.send(call, b"dropped")
    client.talk()
    assert any(isinstance(each, http2.ConnectionTerminated) for each in client.heard)


# What is not taken


@pytest.mark.parametrize(
    ("name", "value"), [(":path", "/v1.Whip/Other"), (":path", "/"), (":method", "PUT")]
)
def test_another_method_is_refused(name: str, value: str) -> None:
    client = Client()
    call = client.call([(each, value if each == name else old) for each, old in HEADERS])
    assert client.talk() == []
    assert client.status(call)[0] == "12"


def test_what_is_not_grpc_is_told_so_in_http() -> None:
    client = Client()
    call = client.call(HEADERS[:4])
    assert client.talk() == []
    [answer] = [each for each in client.heard if isinstance(each, http2.ResponseReceived)]
    assert (answer.stream_id, dict(answer.headers)[":status"]) == (call, "415")


def test_a_message_that_is_too_large_is_refused_before_it_has_come() -> None:
    client = Client()
    call = client.begun()
    client.http2.send_data(call, framed(bytes(MOST + 1))[:5])
    [ended] = client.talk()
    assert ended == CallEnded(call, f"a message of {MOST + 1} octets, at most {MOST} are taken")
    assert client.status(call)[0] == "8"


def test_a_compressed_message_is_refused() -> None:
    client = Client()
    call = client.begun()
    client.http2.send_data(call, framed(b"zip", compressed=1))
    [ended] = client.talk()
    assert isinstance(ended, CallEnded)
    assert client.status(call)[0] == "12"


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(40)])
def test_what_is_not_http2_is_an_error(said: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="HTTP/2"):
        list(GrpcCalls(PATH, MOST).receive(said))


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=3))
def test_nonsense_never_raises_anything_else(nonsense: bytes, begun: int) -> None:
    client = Client()
    for _ in range(begun):
        client.http2.send_data(client.begun(), framed(b"message"))
        client.talk()
    try:
        list(client.server.receive(nonsense))
    except RemoteProtocolError:
        client.server.close()
    client.server.to_send()


# A peer that does not read


def test_a_message_goes_on_as_the_peers_window_opens_and_the_end_behind_it() -> None:
    client = Client(INITIAL_WINDOW_SIZE=10)
    call = client.begun()
    for message in (b"first one", b"second one"):
        assert client.server.send(call, message)
    client.server.end(call, grpc_calls.OK)
    sent = framed(b"first one") + framed(b"second one")
    client.talk()
    assert client.data(call) == sent[:10]
    while len(client.data(call)) < len(sent):
        assert client.status(call) == ("", "")
        before = len(client.data(call))
        client.http2.increment_flow_control_window(7, call)
        client.talk()
        assert len(client.data(call)) == min(before + 7, len(sent))
    assert client.data(call) == sent
    assert client.status(call) == ("0", "")


def test_what_is_held_back_goes_out_in_order() -> None:
    client = Client()
    call = client.begun()
    client.server.held = True
    assert client.server.send(call, b"one")
    client.server.release()
    assert client.server.send(call, b"two")
    client.talk()
    assert client.data(call) == framed(b"one") + framed(b"two")


def test_so_much_is_kept_for_a_peer_that_does_not_read_and_no_more() -> None:
    client = Client(INITIAL_WINDOW_SIZE=0)
    call, message = client.begun(), bytes(16 * 1024 - 5)
    kept = 0
    while client.server.send(call, message):
        kept += 1
    assert kept * 16 * 1024 == grpc_calls.MAX_UNSENT
    client.http2.increment_flow_control_window(16 * 1024, call)
    client.talk()
    assert client.server.send(call, message)


def test_one_call_that_does_not_read_delays_no_other() -> None:
    client = Client(INITIAL_WINDOW_SIZE=10)
    slow, quick = client.begun(), client.begun()
    assert client.server.send(slow, b"x" * 100)
    assert client.server.send(quick, b"quick")
    client.talk()
    assert client.data(quick) == framed(b"quick")
