"""What whip answers over HTTP, decided without I/O: a request in, a response out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from whip_core.errors import WhipError
from whip_core.names import printable

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
MAX_ARGUMENTS = 32
"""Arguments of one request: four times what any of ours takes."""
TOLD = 80
"""Characters of what was asked that an error repeats."""


class BadRequest(WhipError, ValueError):
    """The arguments are wrong; the text says which, and what would be right."""


@dataclass(frozen=True, slots=True)
class Request:
    """`path` and `arguments` are decoded; names of headers are lower case."""

    method: str
    path: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, method: str, target: str, headers: Mapping[str, str]) -> Request:
        """Raises `BadRequest` for a target that no URL has, or an argument given twice."""
        try:
            url = urlsplit(target)
            pairs = parse_qsl(url.query, keep_blank_values=True, max_num_fields=MAX_ARGUMENTS)
        except ValueError as error:
            raise BadRequest(f"not a URL: {error}") from error
        arguments = dict(pairs)
        if len(arguments) != len(pairs):
            raise BadRequest("an argument is given twice")
        return cls(method, unquote(url.path) or "/", arguments, headers)

    def only(self, *known: str) -> None:
        """Raises `BadRequest` if there is an argument that is not `known`."""
        for name in self.arguments:
            if name not in known:
                raise BadRequest(
                    f"there is no argument {printable(name, TOLD)!r}"
                    + (f"; there are {', '.join(known)}" if known else "")
                )


@dataclass(frozen=True, slots=True)
class Response:
    """A body that is a generator is sent piece by piece, and closed if the client goes.

    `is_endless` says that it goes on until then: the client has nothing more to ask.
    """

    body: bytes | AsyncGenerator[bytes, None] = b""
    status: int = 200
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()
    is_endless: bool = False

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        return cls(f"{text}\n".encode(), status)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        return cls(as_json(value), status, JSON)

    @classmethod
    def error(cls, why: str, status: int) -> Response:
        """What a program reads of a request that failed."""
        return cls.json({"error": why}, status)


Handler = Callable[[Request], Response]


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Routes:
    """Answers by path. Whoever has the port may read; `commands` are the POSTs."""

    def __init__(
        self,
        pages: Mapping[str, Handler],
        commands: Mapping[str, Handler] | None = None,
        checks: Iterable[Callable[[Request], Response | None]] = (),
    ) -> None:
        self._pages = pages
        self._commands = commands or {}
        self._checks = tuple(checks)

    def __call__(self, request: Request) -> Response:
        """Never raises for what a client can ask."""
        for check in self._checks:
            if (refusal := check(request)) is not None:
                return refusal
        page, command = self._pages.get(request.path), self._commands.get(request.path)
        if page is None and command is None:
            return Response.error(
                f"there is nothing at {printable(request.path, TOLD)}; "
                f"there is {', '.join([*self._pages, *self._commands])}",
                404,
            )
        answer = page if request.method in ("GET", "HEAD") else command
        if answer is None or request.method not in ("GET", "HEAD", "POST"):
            allowed = ("GET, HEAD",) * bool(page) + ("POST",) * bool(command)
            refused = Response.error(f"{printable(request.method, TOLD)} is not for this", 405)
            return Response(refused.body, 405, JSON, (("Allow", ", ".join(allowed)),))
        try:
            return answer(request)
        except BadRequest as error:
            return Response.error(str(error), 400)
