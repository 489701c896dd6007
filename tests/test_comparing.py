"""How answers of several instances are compared."""

from __future__ import annotations

import json

from whip_addon.comparing import MAX_DIFF_LINES, MAX_LINE, Reply, compare


def answers(*bodies: bytes, status: int = 200, **headers: str) -> list[Reply]:
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return [Reply(f"i{n}.d", status, fields, body) for n, body in enumerate(bodies, 1)]


def test_the_one_of_three_that_answers_differently_is_found() -> None:
    comparison = compare(answers(b"same", b"other", b"same"))
    assert comparison.differs
    assert comparison.differences == {
        "i2.d": ["body:", "--- others", "+++ this", "@@ -1 +1 @@", "-same", "+other"]
    }


def test_equal_answers_do_not_differ() -> None:
    assert not compare(answers(b"same", b"same")).differs
    assert not compare([]).differs


def test_json_is_compared_as_json() -> None:
    one, two = b'{"a": 1, "b": [1, 2]}', b'{"b":[1,2],"a":1}'
    assert not compare(answers(one, two, content_type="application/json")).differs
    comparison = compare(answers(one, one, b'{"a":2,"b":[1,2]}'))
    assert '-  "a": 1,' in comparison.differences["i3.d"]
    assert '+  "a": 2,' in comparison.differences["i3.d"]
    assert not any('"b"' in line for line in comparison.differences["i3.d"] if line[0] in "+-")


def test_what_is_json_too_deep_to_read_is_compared_as_text() -> None:
    deep = b"[" * 100_000
    assert not compare(answers(deep, deep)).differs


def test_volatile_headers_are_left_out_and_so_are_the_ones_named() -> None:
    one, two, three = answers(b"", Date="1", X_Id="1"), answers(b"", Date="2", X_Id="2"), []
    replies = [*one, *(Reply("i2.d", 200, reply.headers) for reply in two), *three]
    assert compare(replies).differences == {"i2.d": ["header x-id: 2, others 1"]}
    assert not compare(replies, ["X-ID"]).differs


def test_status_missing_headers_and_failures_are_told() -> None:
    replies = [
        Reply("a.d", 200, (("x", "1"), ("X", "2"))),
        Reply("b.d", 200, (("x", "1, 2"),)),
        Reply("c.d", 500),
    ]
    assert compare(replies).differences == {
        "c.d": ["status 500, others 200", "header x: (none), others 1, 2"],
    }


def test_who_was_not_reached_is_compared_with_nobody() -> None:
    replies = [Reply("a.d", 200), Reply("b.d", error="no"), Reply("c.d", error="no\nroute")]
    comparison = compare(replies)
    assert (comparison.differences, comparison.unreached) == ({}, ["b.d", "c.d"])
    assert comparison.text().splitlines()[1:] == [
        "a.d       200     0       same",
        "b.d       -       -       not reached: no",
        "c.d       -       -       not reached: no\N{REPLACEMENT CHARACTER}route",
    ]
    alone = compare(replies[1:])
    assert (alone.differs, alone.unreached) == (False, ["b.d", "c.d"])


def test_bytes_that_are_no_text_are_told_by_size_and_digest() -> None:
    [line] = compare(answers(b"\xff\x00", b"\xff\x00", b"\xff\x01\x02")).differences["i3.d"]
    assert line.startswith("body 3 octets, sha256 ")


def test_a_large_difference_is_told_in_bounded_lines() -> None:
    huge = json.dumps({f"key {n}": "x" * 1000 for n in range(100)}).encode()
    told = compare(answers(b"{}", b"{}", huge)).differences["i3.d"]
    assert len(told) == MAX_DIFF_LINES + 2
    assert max(map(len, told)) == MAX_LINE + 1


def test_the_table_has_its_columns_under_each_other() -> None:
    assert compare(answers(b"same", b"other", b"same")).text().splitlines()[:4] == [
        "instance  status  octets  answer",
        "i1.d      200     4       same",
        "i2.d      200     5       differs",
        "                          body:",
    ]
