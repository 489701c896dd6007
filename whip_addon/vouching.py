"""Who asks learns which instance answered, from a mark that nobody else can make.

Whoever compares answers (`whip replay-across`) must not take a refusal of whip's, or of some
other proxy, for what an instance says. A request may carry a secret in the header `QUESTION`.
It is taken out before anything is sent on, so that no service ever sees it; a response that
came over a stream to an instance brings it back in `ANSWER`, with the instance's name behind
it. What whip answers by itself, a failed dial for one, does not.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable

from mitmproxy.connection import Server
from mitmproxy.http import HTTPFlow, Response

from whip_addon.facts import INSTANCE, Facts
from whip_addon.fields import values
from whip_addon.internal import HOST, is_internal

QUESTION = "Whip-Who-Answers"
ANSWER = "Whip-Answered"


def new_question() -> str:
    return secrets.token_hex(16)


def answered_by(response: Response, question: str) -> str | None:
    """Whose answer `response` is, if whip vouches for that; takes the mark out."""
    secret, _, name = response.headers.pop(ANSWER, "").partition(" ")
    return name if secrets.compare_digest(secret.encode(), question.encode()) and name else None


class Vouching:
    """`facts_of` knows where a connection leads, `has_dialled` if it is one of whip's at all."""

    name = "whip.vouching"

    def __init__(
        self, facts_of: Callable[[Server], Facts | None], has_dialled: Callable[[Server], bool]
    ) -> None:
        self._facts_of = facts_of
        self._has_dialled = has_dialled
        self._questions: weakref.WeakKeyDictionary[HTTPFlow, str] = weakref.WeakKeyDictionary()

    def requestheaders(self, flow: HTTPFlow) -> None:
        if values(flow.request, QUESTION.lower().encode()):
            self._questions[flow] = flow.request.headers.pop(QUESTION)

    def responseheaders(self, flow: HTTPFlow) -> None:
        question = self._questions.pop(flow, None) if self._questions else None
        if question is None or flow.response is None:
            return
        flow.response.headers.pop(ANSWER, None)
        if name := self._name(flow):
            flow.response.headers[ANSWER] = f"{question} {name}"

    def _name(self, flow: HTTPFlow) -> str | None:
        if is_internal(flow.request.host) and self._has_dialled(flow.server_conn):
            return HOST
        facts = self._facts_of(flow.server_conn)
        return str(facts[INSTANCE]) if facts is not None and INSTANCE in facts else None
