"""`whip replay-across`: captured requests to every instance of a domain, through a proxy."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
from mitmproxy.exceptions import FlowReadException
from mitmproxy.http import Headers, HTTPFlow, Request, Response
from mitmproxy.io import FlowReader

from whip_addon.comparing import Comparison, Reply, compare
from whip_addon.directory import members_of
from whip_addon.internal import AGENTS, HOST
from whip_addon.replies import not_reached, reply_of, why_not_replayed
from whip_addon.vouching import QUESTION, answered_by, new_question
from whip_core import progress
from whip_core.errors import UnknownName
from whip_core.names import AgentName, host_port, normalize
from whip_core.options import Failure, log_level_option, option

TIMEOUT = 60.0
"""Seconds that the proxy, or an instance, may be silent."""
AT_ONCE = 8
"""Instances that are asked at the same time."""
NOT_SENT = frozenset({"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te"})
"""What was between the captured client and its proxy."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running `whip proxy`."""

    host: str
    port: int
    is_tls: bool = False
    authorization: str | None = None

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """[http[s]://][USER:PASSWORD@]HOST[:PORT]; raises `click.BadParameter`."""
        try:
            url = urlsplit(text if "://" in text else f"http://{text}")
            port = url.port or 8080
            if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/"):
                raise ValueError("it is not HOST:PORT")
            url.hostname.encode("idna")  # as the socket does, which has no line for it
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {error}", param_hint="--proxy") from error
        login = None
        if url.username is not None:
            words = f"{unquote(url.username)}:{unquote(url.password or '')}"
            login = "Basic " + base64.b64encode(words.encode()).decode()
        return cls(url.hostname, port, url.scheme == "https", login)

    def send(
        self, method: str, url: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Response:
        """Raises `OSError` or `http.client.HTTPException`."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=TIMEOUT)
        try:
            connection.putrequest(method, url, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value.encode("utf-8", "surrogateescape"))
            if self.authorization is not None:
                connection.putheader("Proxy-Authorization", self.authorization)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            received = Headers(
                [(name.encode(), value.encode("latin-1")) for name, value in answer.getheaders()]
            )
            return Response.make(answer.status, answer.read(), received)
        finally:
            connection.close()


@click.command("replay-across")
@click.argument("flowfile", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("domain")
@option(
    "--proxy",
    "proxy_address",
    default="localhost:8080",
    metavar="[USER:PASSWORD@]HOST:PORT",
    help="The running `whip proxy` to go through.",
)
@option(
    "--ignore-header",
    multiple=True,
    metavar="NAME",
    help="A header that may differ, besides the usual ones (repeatable).",
)
@log_level_option
def replay_across(
    flowfile: Path, domain: str, proxy_address: str, ignore_header: Sequence[str]
) -> None:
    """Send captured requests to every instance of DOMAIN, and show whose answers differ.

    FLOWFILE is what mitmproxy has saved (`-w`, or `w` in the console). The exit status is 1
    if answers differ, or if an instance could not be reached.
    """
    try:
        normalize(domain)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="DOMAIN") from error
    proxy = Proxy.parse(proxy_address)
    requests = _requests_in(flowfile)
    instances = _instances_of(domain, proxy)
    failed = False
    for request in requests:
        click.secho(f"{request.method} {request.path} across {domain}", bold=True)
        comparison = _across(request, instances, proxy, ignore_header)
        click.echo(comparison.text())
        failed = failed or comparison.differs or bool(comparison.unreached)
    if failed:
        raise SystemExit(1)


def _requests_in(path: Path) -> list[Request]:
    requests = []
    try:
        with path.open("rb") as file:
            for flow in FlowReader(file).stream():
                if not isinstance(flow, HTTPFlow):
                    continue
                if why := why_not_replayed(flow):
                    click.echo(f"left out {flow.request.pretty_url}: {why}", err=True)
                else:
                    requests.append(flow.request)
    except (OSError, FlowReadException) as error:
        raise Failure(f"cannot read flows from {path}: {error}") from error
    if not requests:
        raise Failure(f"{path} has no HTTP request that can be replayed")
    return requests


def _instances_of(domain: str, proxy: Proxy) -> list[str]:
    url, where = f"http://{HOST}{AGENTS}", host_port(proxy.host, proxy.port)
    question = new_question()
    try:
        answer = proxy.send("GET", url, [("Host", HOST), (QUESTION, question)], b"")
    except (OSError, http.client.HTTPException) as error:
        raise Failure(
            f"cannot reach a proxy at {where}: {error}; "
            "start `whip proxy`, or say where it is with --proxy"
        ) from error
    if answer.status_code != 200:
        raise Failure(
            f"{where} answers {answer.status_code} to {url}: {(answer.text or '').strip()[:200]}"
        )
    if answered_by(answer, question) != HOST:
        # The metrics port serves the same page, but leads to no instance.
        raise Failure(
            f"{where} is not a `whip proxy`: say with --proxy where one "
            "listens (its --proxy-listen-port)"
        )
    try:
        known = [_name_of(agent) for agent in json.loads(answer.text or "")["agents"]]
        return [member.full for member in members_of(domain, known)]
    except UnknownName as error:
        raise Failure(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{where} is not a `whip proxy`: {error}") from error


def _name_of(agent: dict[str, Any]) -> AgentName:
    name: str = agent["name"]
    domain = agent.get("domain") or name.partition(".")[2]
    return AgentName(name.removesuffix(f".{domain}"), domain)


def _across(
    request: Request, instances: Sequence[str], proxy: Proxy, ignored: Sequence[str]
) -> Comparison:
    def ask(instance: str) -> Reply:
        return _reply(request, instance, proxy)

    with (
        progress.doing(f"asking {len(instances)} instances ..."),
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replay") as threads,
    ):
        replies: list[Reply] = []
        for reply in threads.map(ask, instances):
            replies.append(reply)
            progress.say(f"{len(replies)} of {len(instances)} instances have answered")
    return compare(replies, ignored)


def _reply(request: Request, instance: str, proxy: Proxy) -> Reply:
    """The absolute form of the URL says where to; the Host header stays what it was."""
    body = request.raw_content or b""
    headers = [
        (name, value)
        for name, value in request.headers.items(multi=True)
        if name.lower()
        not in NOT_SENT | {"content-length", "host", "transfer-encoding", QUESTION.lower()}
    ]
    if body:
        headers.append(("Content-Length", str(len(body))))
    host = request.host_header or request.host
    url = f"{request.scheme}://{instance}:{request.port}{request.path}"
    question = new_question()
    try:
        answer = proxy.send(
            request.method, url, [("Host", host), *headers, (QUESTION, question)], body
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(instance, error=str(error) or type(error).__name__)
    name = answered_by(answer, question)
    if name is None:
        return not_reached(instance, answer)
    if name != instance:
        return Reply(instance, error=f"{name} answered in its place")
    return reply_of(instance, answer)
