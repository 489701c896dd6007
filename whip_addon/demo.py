"""`whip demo`: the main job, step by step, on this machine, with real processes."""

from __future__ import annotations

import contextlib
import http.client
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from types import FrameType
from typing import Any

import click
from mitmproxy.io import FlowReader

from whip_core import progress
from whip_core.errors import WhipError
from whip_core.options import Failure, log_level_option, option

NAME = "instance1.testdom"
REGISTERED = "whip_server_active_registrations{"
START_TIMEOUT = 60.0
"""Seconds for a process to come up: mitmproxy's first start compiles its modules."""
CERTIFICATES = ("genselfsignedca", "createandsign server", "createandsign client --domain=testdom")


class DemoFailed(WhipError):
    """A step of the demo did not work; the text says which, and what its process said."""


class _Hello(BaseHTTPRequestHandler):
    """The private service."""

    def do_GET(self) -> None:
        body = b"Hello from a service without a TCP port.\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        pass


class _UnixHTTPServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@click.command()
@option("--keep", type=bool, default=False, help="Keep running at the end, until Ctrl-C.")
@log_level_option
def demo(keep: bool) -> None:
    """See a request reach a service that has no way in."""
    try:
        with _Stopping() as stopping, tempfile.TemporaryDirectory(prefix="whip-demo-") as folder:
            _demo(Path(folder), keep, stopping)
    except DemoFailed as error:
        raise Failure(str(error)) from error
    except _Stopped as stopped:
        with contextlib.suppress(OSError):  # the terminal may be gone
            click.echo("stopped")
        if stopped.signal != signal.SIGINT:
            raise SystemExit(128 + stopped.signal) from None


class _Stopped(BaseException):
    """Somebody wants the demo to end: Ctrl-C, SIGTERM, or its terminal has gone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class _Stopping:
    """While it is entered, the first signal to end raises `_Stopped`.

    Those that follow (a shell and the kernel both send SIGHUP) must not end the cleaning up.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._is_held = False
        self._held: int | None = None

    def __enter__(self) -> _Stopping:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal waits until the end of the block: a process that starts is ours by then."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def check(self) -> None:
        """Raises `_Stopped` for a signal that was held."""
        if self._held is not None:
            raise _Stopped(self._held)

    def _stop(self, number: int, _: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)
        self._held = number
        if not self._is_held:
            raise _Stopped(number)


def _demo(folder: Path, keep: bool, stopping: _Stopping) -> None:
    proxy_port, grpc_port, tcp_port, metrics_port = _free_ports(4)
    _say(1, "Certificates: a CA, one for the broker, one for the agents of domain testdom.")
    for command in CERTIFICATES:
        _run(folder, f"whip pki {command}")
    _say(2, "A private service. It listens on a unix socket: no network reaches it.")
    with _service(folder / "app.sock"):
        _say(3, f"An agent beside it dials out and offers it as port 80 of {NAME}.")
        agent = (
            "whip client --hostname=instance1 --domain=testdom --ports=80=unix:app.sock "
            "--tls-key-path=client-key.pem --tls-cert-path=client-cert.pem "
            f"--tls-ca-cert-path=ca-cert.pem --metrics-listen= localhost:{grpc_port}"
        )
        proxy = (
            f"whip proxy --proxy-listen-port={proxy_port} --whip-grpc-listen-port={grpc_port} "
            f"--whip-tcp-listen-port={tcp_port} --whip-external-tcp-address=localhost "
            "--tls-key-path=server-key.pem --tls-cert-path=server-cert.pem "
            f"--tls-ca-cert-path=ca-cert.pem --metrics-listen=127.0.0.1:{metrics_port} "
            "-- -w flows.mitm"
        )
        with _process(folder, agent, "agent.log", stopping):
            _say(4, "mitmproxy with whip's addon: the broker that agents register at.")
            with _process(folder, proxy, "proxy.log", stopping) as running:
                with progress.doing("  mitmproxy starts, and the agent comes to its broker ..."):
                    _wait_until_registered(metrics_port, running, folder)
                click.echo("  the agent has registered.")
                _requests(proxy_port)
                _figures(metrics_port)
                if keep:
                    click.echo(f"\nStill running: curl --proxy localhost:{proxy_port} {NAME}/")
                    click.echo("Ctrl-C ends it.")
                    threading.Event().wait()
            _facts(folder / "flows.mitm")
    click.echo("\nThat was it. `whip demo --keep=true` leaves it running for you to try, and")
    click.echo("with mitmproxy's screens it is `whip proxy --ui console` or `--ui web`.")


def _requests(proxy_port: int) -> None:
    _say(5, "A request by name, through the proxy, over mutual TLS, to the private service:")
    _show(f"curl --proxy localhost:{proxy_port} {NAME}/")
    status, body = _get(proxy_port, f"http://{NAME}/")
    click.echo(f"  {status}: {body.strip()}")
    if status != 200:
        raise DemoFailed(f"the request was answered {status}")
    _say(6, "A name that nobody has is refused at once, and never looked for elsewhere:")
    _show(f"curl --proxy localhost:{proxy_port} instance2.testdom/")
    status, body = _get(proxy_port, "http://instance2.testdom/")
    click.echo(f"  {status}: {_text_of(body)}")


def _figures(metrics_port: int) -> None:
    _say(7, "What Prometheus sees:")
    _show(f"curl -s localhost:{metrics_port}/metrics")
    for line in _metrics(metrics_port):
        if line.startswith((REGISTERED, "whip_proxy_requests_total{")):
            click.echo(f"  {line}")


def _facts(path: Path) -> None:
    """Of the proxy that has ended: mitmproxy may keep the last ones back until then."""
    _say(8, "Each request is a flow in mitmproxy (here saved by -w) that knows its tunnel:")
    with path.open("rb") as file:
        for flow in FlowReader(file).stream():
            click.echo(f"  {flow.comment}")


def _say(step: int, text: str) -> None:
    click.echo()
    click.secho(f"{step}. {text}", bold=True)


def _show(command: str) -> None:
    click.secho(f"  $ {command}", fg="cyan")


def _arguments(command: str) -> list[str]:
    """The command with this Python, so that no PATH has to be right."""
    words = shlex.split(command)
    return [sys.executable, "-c", "from whip_core.cli import main; main()", *words[1:]]


def _run(folder: Path, command: str) -> None:
    _show(command)
    done = subprocess.run(  # noqa: S603  # our own commands
        _arguments(command), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoFailed(f"{command}: {done.stderr.strip()}")


@contextlib.contextmanager
def _process(
    folder: Path, command: str, log_name: str, stopping: _Stopping
) -> Iterator[subprocess.Popen[bytes]]:
    _show(command)
    with (folder / log_name).open("wb") as log, stopping.held():
        process = subprocess.Popen(  # noqa: S603  # our own commands
            _arguments(command), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        stopping.check()
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _service(path: Path) -> Iterator[None]:
    with _UnixHTTPServer(str(path), _Hello) as server:
        thread = threading.Thread(target=server.serve_forever, name="service", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _wait_until_registered(port: int, proxy: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and proxy.poll() is None:
        if any(line.startswith(REGISTERED) for line in _metrics(port)):
            return
        time.sleep(0.05)
    logs = "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
    raise DemoFailed(f"the agent did not register at the proxy:\n{logs}")


def _metrics(port: int) -> list[str]:
    """The lines of /metrics; none while nothing is served there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
    except OSError:
        return []
    return text.splitlines()


def _get(proxy_port: int, url: str) -> tuple[int, str]:
    proxy = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{proxy_port}"})
    try:
        with urllib.request.build_opener(proxy).open(url, timeout=START_TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise DemoFailed(f"{url} through the proxy: {error}") from error


def _text_of(page: str) -> str:
    """The sentence in mitmproxy's error page."""
    return page.partition("<p>")[2].partition("</p>")[0] or page.strip()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
