"""How the answers of several instances to one request differ. Pure: replies in, text out.

An instance that gave no answer is not like any other: it is told as not reached, with the
reason, and only the answers that there are get compared.

What most instances answer is the reference (of two equally frequent answers the one of the
first instance by name); every other answer is told as its differences from that. JSON is
compared as JSON, and headers that differ between any two answers are left out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

VOLATILE = frozenset(
    {
        *("age", "alt-svc", "connection", "content-encoding", "content-length", "date", "etag"),
        *("expires", "keep-alive", "last-modified", "nel", "proxy-connection", "report-to"),
        *("server-timing", "set-cookie", "traceparent", "tracestate", "transfer-encoding", "via"),
        *("cf-ray", "x-amzn-trace-id", "x-b3-traceid", "x-correlation-id", "x-request-id"),
        *("x-response-time", "x-runtime", "x-trace-id"),
    }
)
"""Headers that differ between two answers of one server, or only say how the body was sent."""
MAX_DIFF_LINES = 40
MAX_LINE = 160
"""What a person reads; the flows themselves have the rest."""

Row = list[str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What an instance answered; the body is decoded. `error` says why it gave no answer."""

    instance: str
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    replies: tuple[Reply, ...]
    differences: dict[str, list[str]]
    """The differing instances' names, and what is different there."""

    @property
    def differs(self) -> bool:
        return bool(self.differences)

    @property
    def unreached(self) -> list[str]:
        """The instances that gave no answer."""
        return [reply.instance for reply in self.replies if reply.error is not None]

    def table(self) -> list[Row]:
        """A heading, a row for each instance, and under the differing ones what differs."""
        rows = [["instance", "status", "octets", "answer"]]
        for reply in self.replies:
            found = self.differences.get(reply.instance)
            status = str(reply.status) if reply.status is not None else "-"
            verdict = "same" if found is None else "differs"
            if reply.error is not None:
                verdict = _short(f"not reached: {reply.error}")
            octets = str(len(reply.body)) if reply.error is None else "-"
            rows.append([reply.instance, status, octets, verdict])
            rows += [["", "", "", line] for line in found or ()]
        return rows

    def text(self) -> str:
        """The table with its columns under each other."""
        return "\n".join(aligned(self.table()))


def aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def compare(replies: Collection[Reply], ignored: Collection[str] = ()) -> Comparison:
    """`ignored` are headers to leave out besides the volatile ones."""
    left_out = VOLATILE | {name.strip().lower() for name in ignored}
    ordered = tuple(sorted(replies, key=lambda reply: reply.instance))
    answers = [reply for reply in ordered if reply.error is None]
    if not answers:
        return Comparison(ordered, {})
    seen = {reply.instance: _essence(reply, left_out) for reply in answers}
    [(usual, _)] = Counter(seen.values()).most_common(1)
    reference = next(reply for reply in answers if seen[reply.instance] == usual)
    return Comparison(
        ordered,
        {
            reply.instance: list(_differences(reply, reference, left_out))
            for reply in answers
            if seen[reply.instance] != usual
        },
    )


def _essence(reply: Reply, left_out: Collection[str]) -> tuple[Any, ...]:
    headers = tuple(sorted(_headers(reply, left_out).items()))
    return reply.status, headers, _comparable(reply.body)


def _headers(reply: Reply, left_out: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in reply.headers:
        key = name.lower()
        if key not in left_out:
            found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _comparable(body: bytes) -> str | bytes:
    """JSON in one form, other text as it is, anything else as bytes."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body
    try:
        return json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _differences(reply: Reply, reference: Reply, left_out: Collection[str]) -> Any:
    if reply.status != reference.status:
        yield f"status {reply.status}, others {reference.status}"
    ours, theirs = _headers(reply, left_out), _headers(reference, left_out)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield _short(
                f"header {name}: {ours.get(name, '(none)')}, others {theirs.get(name, '(none)')}"
            )
    yield from _body_differences(reply.body, reference.body)


def _body_differences(body: bytes, reference: bytes) -> Any:
    ours, theirs = _comparable(body), _comparable(reference)
    if ours == theirs:
        return
    if isinstance(ours, bytes) or isinstance(theirs, bytes):
        yield f"body {_digest(body)}, others {_digest(reference)}"
        return
    lines = list(
        difflib.unified_diff(
            theirs.splitlines(), ours.splitlines(), "others", "this", n=1, lineterm=""
        )
    )
    yield "body:"
    yield from map(_short, lines[:MAX_DIFF_LINES])
    if len(lines) > MAX_DIFF_LINES:
        yield f"... and {len(lines) - MAX_DIFF_LINES} more lines"


def _digest(body: bytes) -> str:
    return f"{len(body)} octets, sha256 {hashlib.sha256(body).hexdigest()[:12]}"


def _short(line: str) -> str:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…"
