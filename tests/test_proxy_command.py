"""`whip proxy`, and mitmproxy's tools by way of `whip`, as a user calls them."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitm import answering, confdir, curl, read_head, service
from programs import path_of
from tunnel import agent_settings, run, running
from whip_addon import commands
from whip_addon.door import ConstantTime
from whip_core.cli import main
from whip_core.settings import TLSFiles
from whip_core.testing import Authority

ADDRESS = ("--whip-external-tcp-address=localhost",)
PLAIN = (*ADDRESS, "--tls=false")
PLUGIN = """
from dataclasses import dataclass
from whip_core import hookimpl

@dataclass
class Settings:
    depth: int = 1

@hookimpl
def whip_settings():
    return Settings

@hookimpl
def whip_configure(settings):
    pass
"""


@dataclass
class Called:
    """What mitmproxy would have been started with."""

    tool: str
    arguments: list[str]

    def options(self) -> dict[str, str]:
        """What is set with --set."""
        pairs = zip(self.arguments, self.arguments[1:], strict=False)
        return dict(value.split("=", 1) for name, value in pairs if name == "--set")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Called]:
    found: list[Called] = []
    monkeypatch.setattr(commands, "_run", lambda *call: found.append(Called(*call)))
    monkeypatch.setattr(commands, "_check_terminal", lambda *_: None)
    monkeypatch.setattr(commands, "_check_free", lambda *_: None)
    monkeypatch.setattr(commands, "_check_startable", lambda *_: None)
    return found


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WHIP_")]:
        monkeypatch.delenv(name)


def whip(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# mitmproxy's own tools


@pytest.mark.parametrize("tool", ["mitmdump", "mitmproxy", "mitmweb"])
@pytest.mark.parametrize(
    "arguments", [(), ("-s", "my.py", "--set", "a=b"), ("--help",), ("--", "~q"), ("-n", "--", "x")]
)
def test_a_tool_gets_its_arguments_untouched_and_the_addon(
    tool: str, arguments: tuple[str, ...], calls: list[Called]
) -> None:
    assert whip(tool, *arguments).exit_code == 0
    assert calls == [Called(tool, ["-s", str(commands.ADDON), *arguments])]


def test_help_and_version_of_a_tool_are_mitmproxys() -> None:
    for argument, expected in (("--version", "Mitmproxy: "), ("--help", "usage: mitmdump ")):
        finished = run_whip("mitmdump", argument)
        assert finished.stdout.startswith(expected)
        assert finished.stderr == ""


def test_the_path_of_the_addon_is_a_script_that_mitmproxy_takes() -> None:
    finished = run_whip("addon-path")
    assert finished.returncode == 0
    path = Path(finished.stdout.removesuffix("\n"))
    assert path == commands.ADDON
    assert path.is_file()


# The arguments of `whip proxy`


def test_the_defaults_are_loopback_mitmdump_and_streamed_bodies(calls: list[Called]) -> None:
    assert whip("proxy", *PLAIN).exit_code == 0
    [called] = calls
    assert called.tool == "mitmdump"
    assert called.arguments[:6] == [
        *("-s", str(commands.ADDON)),
        *("--listen-host", "127.0.0.1", "--listen-port", "8080"),
    ]
    assert called.options() == {
        "termlog_verbosity": "info",
        "stream_large_bodies": "1m",
        "whip_external_tcp_address": "localhost",
        "whip_tls": "false",
    }


def test_every_setting_reaches_the_addon(calls: list[Called], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    plugin = tmp_path / "my.py"
    plugin.write_text(PLUGIN)
    finished = whip(
        *("proxy", *PLAIN, "--whip-external-tcp-port=9000", "--whip-listen-host=127.0.0.1"),
        *("--whip-tcp-listen-port=8001", "--whip-grpc-listen-port=50052", "--fallback=true"),
        *("--picker=random", "--metrics-listen=", "--domain=a", "--domain=b", "--wait=3"),
        *("--downstream-request-id-header=X-Id", "--proxy-auth-username=me"),
        *("--proxy-auth-password-path", str(tmp_path / "password"), "--log-level=warning"),
        *(
            "--dial-timeout=7",
            f"--plugin={plugin}",
            "--plugin-set=my.depth=2",
            "--proxy-listen-port=8081",
        ),
        *("--allow-plaintext=true",),
    )
    assert finished.exit_code == 0, finished.output
    [called] = calls
    options = called.options()
    assert options.pop("whip_domains") == "b"
    assert "whip_domains=a" in called.arguments
    assert options == {
        "termlog_verbosity": "warn",
        "stream_large_bodies": "1m",
        "whip_external_tcp_address": "localhost",
        "whip_external_tcp_port": "9000",
        "whip_listen_host": "127.0.0.1",
        "whip_tcp_listen_port": "8001",
        "whip_grpc_listen_port": "50052",
        "whip_tls": "false",
        "whip_allow_plaintext": "true",
        "whip_fallback": "true",
        "whip_dial_timeout": "7",
        "whip_wait": "3",
        "whip_plugins": str(plugin),
        "whip_plugin_set": "my.depth=2",
        "whip_metrics_listen": "",
        "whip_downstream_request_id_header": "X-Id",
        "whip_proxy_auth_username": "me",
        "whip_proxy_auth_password_path": str(tmp_path / "password"),
    }
    assert "secret" not in " ".join(called.arguments)
    assert called.arguments[called.arguments.index("--listen-port") + 1] == "8081"


def test_settings_come_from_the_environment_too(
    calls: list[Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHIP_EXTERNAL_TCP_ADDRESS", "proxy.example")
    monkeypatch.setenv("WHIP_TLS", "false")
    monkeypatch.setenv("WHIP_METRICS_LISTEN", "127.0.0.1:9464")
    assert whip("proxy").exit_code == 0
    [called] = calls
    assert called.options()["whip_external_tcp_address"] == "proxy.example"
    # Somebody has named it, so that it is an error if it is taken.
    assert called.options()["whip_metrics_listen"] == "127.0.0.1:9464"


def test_what_stands_after_the_dashes_is_mitmproxys_and_wins(calls: list[Called]) -> None:
    own = ["--set", "stream_large_bodies=5m", "--ssl-insecure", "~d testdom"]
    assert whip("proxy", *PLAIN, "--", *own).exit_code == 0
    [called] = calls
    assert called.arguments[-4:] == own
    assert "stream_large_bodies=1m" not in called.arguments


@pytest.mark.parametrize(("ui", "tool"), [("console", "mitmproxy"), ("web", "mitmweb")])
def test_a_screen_of_mitmproxys_can_be_had(ui: str, tool: str, calls: list[Called]) -> None:
    assert whip("proxy", *PLAIN, f"--ui={ui}").exit_code == 0
    assert calls[0].tool == tool
    # mitmweb shows what it takes for a number.
    streamed = calls[0].options()["stream_large_bodies"]
    assert streamed == ("1048576" if tool == "mitmweb" else "1m")


@pytest.mark.parametrize(
    ("target", "mode"),
    [
        ("Instance1.testdom", "reverse:http://instance1.testdom:80"),
        ("instance1.testdom:5051", "reverse:http://instance1.testdom:5051"),
        ("http://testdom/", "reverse:http://testdom:80"),
        ("https://testdom", "reverse:https://testdom:443"),
        ("https://testdom:8443", "reverse:https://testdom:8443"),
    ],
)
def test_a_target_makes_a_reverse_proxy(target: str, mode: str, calls: list[Called]) -> None:
    assert whip("proxy", *PLAIN, f"--target={target}").exit_code == 0
    [called] = calls
    assert called.arguments[called.arguments.index("--mode") + 1] == mode
    assert called.options()["connection_strategy"] == "lazy"


# Wrong calls


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    yield Authority(tmp_path_factory.mktemp("pki"))


def _tls(files: TLSFiles, **changes: Path) -> tuple[str, ...]:
    paths = {"key": files.key, "cert": files.cert, "ca-cert": files.ca} | changes
    return tuple(f"--tls-{name}-path={path}" for name, path in paths.items())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --whip-external-tcp-address"),
        (ADDRESS, "TLS is on, so give --tls-key-path, --tls-cert-path, --tls-ca-cert-path"),
        ((*PLAIN, "--proxy-listen-host=0.0.0.0"), "refusing to listen on 0.0.0.0 without a pass"),
        ((*PLAIN, "--proxy-listen-host="), "refusing to listen on all interfaces without"),
        ((*PLAIN, "--proxy-listen-port=70000"), "70000 is not in the range"),
        ((*PLAIN, "--proxy-auth-username=me"), "WHIP_PROXY_PASSWORD is not set"),
        ((*PLAIN, "--picker=worst"), "no picker 'worst'"),
        ((*PLAIN, "--plugin=nowhere.py"), "cannot load plugin nowhere.py"),
        ((*PLAIN, "--no-plugin=nothing"), "no plugin nothing to leave out"),
        ((*PLAIN, "--plugin-set=my.depth=2"), "my.depth: there is no plugin my"),
        ((*PLAIN, "--fabric=foo"), "--fabric 'foo': no plugin makes such a fabric"),
        ((*PLAIN, "--target=ftp://testdom"), "is not NAME[:PORT]"),
        ((*PLAIN, "--target=testdom/path"), "is not NAME[:PORT]"),
        ((*PLAIN, "--target=test dom"), "is not a host name"),
        ((*PLAIN, "--target=testdom:99999"), "out of range"),
        ((*PLAIN, "--ui=window"), "'window' is not one of"),
        ((*PLAIN, "stray"), "unexpected extra argument (stray)"),
        ((*PLAIN, "--whip-listen-host=0.0.0.0"), "refusing to listen on 0.0.0.0 without TLS"),
        ((*PLAIN, "--no-such"), "No such option"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    arguments: Sequence[str], says: str, calls: list[Called]
) -> None:
    finished = whip("proxy", *arguments)
    assert finished.exit_code == 2
    assert says in finished.output.splitlines()[-1]
    assert calls == []


def test_certificates_that_are_missing_or_do_not_match_are_found_at_once(
    authority: Authority, calls: list[Called], tmp_path: Path
) -> None:
    one, other = authority.server_files(), authority.server_files()
    missing = tmp_path / "missing.pem"
    door = (*_tls(one), "--proxy-tls=true", f"--proxy-tls-cert-path={one.cert}")
    for arguments, says in (
        (_tls(one, key=missing), "missing.pem"),
        (_tls(one, key=other.key), "does not belong to"),
        (_tls(one, **{"ca-cert": missing}), "missing.pem"),
        ((*door, f"--proxy-tls-key-path={other.key}"), "for the proxy's TLS: "),
        ((*door, f"--proxy-tls-key-path={missing}"), "missing.pem"),
    ):
        finished = whip("proxy", *ADDRESS, *arguments)
        assert finished.exit_code == 2, finished.output
        assert says in finished.output.splitlines()[-1]
        assert "Traceback" not in finished.output
    assert calls == []


def test_a_proxy_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = whip("proxy", *PLAIN, f"--proxy-listen-port={port}")
    assert finished.exit_code == 1
    assert finished.output == (
        f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use; "
        "choose another --proxy-listen-port\n"
    )


@pytest.mark.parametrize("command", [("proxy", *PLAIN), ("mitmdump",)])
def test_without_mitmproxy_it_is_said_how_to_get_it(
    command: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mitmproxy.tools", None)
    finished = whip(*command)
    assert finished.exit_code == 1
    assert "pip install 'whip-tunnel[proxy]'" in finished.output
    assert len(finished.output.splitlines()) == 1


@pytest.mark.parametrize("command", ["demo", "replay-across"])
def test_a_command_that_cannot_even_be_imported_without_mitmproxy_says_the_same(
    command: str,
) -> None:
    code = (
        "import sys; sys.modules['mitmproxy'] = None\n"
        f"from whip_core.cli import main; main(['{command}'], prog_name='whip')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: `whip {command}` is not available here: ")
    assert line.endswith("pip install 'whip-tunnel[proxy]'")


# The proxy itself, with a real broker and a real agent


def run_whip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path_of("whip"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@dataclass
class Running:
    stop: Callable[[], None]
    port: int
    control_port: int
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"


@asynccontextmanager
async def whip_proxy(*arguments: str, **environment: str) -> AsyncIterator[Running]:
    """A `whip proxy` on free ports, once it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(path_of("whip"), "proxy", "--proxy-listen-port=0", "--metrics-listen="),
        *("--whip-tcp-listen-port=0", "--whip-grpc-listen-port=0", *ADDRESS),
        "--whip-listen-host=127.0.0.1",
        *(*arguments, "--", "--set", f"confdir={confdir()}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    lines: list[str] = []

    async def port(pattern: str) -> int:
        assert process.stdout is not None
        while True:
            if found := re.search(pattern, "\n".join(lines)):
                return int(found[1])
            line = await process.stdout.readline()
            assert line, "\n".join(lines)
            lines.append(line.decode().rstrip())

    async def follow() -> None:
        assert process.stdout is not None
        lines.extend([line.decode().rstrip() async for line in process.stdout])

    try:
        control_port = await port(r"agents register at port (\d+)")
        proxy_port = await port(r"listening at 127\.0\.0\.1:(\d+)")
        following = asyncio.get_running_loop().create_task(follow())
        # Twice would be once too often: the second could come when nobody catches it.
        stop = functools.cache(process.terminate)
        yield Running(stop, proxy_port, control_port, lines)
        stop()
        await following
        assert await process.wait() == 0
        assert "Traceback" not in "\n".join(lines)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _agent(port: int, authority: Authority, control_port: int) -> Any:
    return running(
        agent_settings(
            control_port, ports=str(port), tls=authority.client_files("instance1.testdom")
        )
    )


def test_a_request_travels_over_mutual_tls_to_a_service_by_its_name(authority: Authority) -> None:
    async def main() -> None:
        files = authority.server_files()
        async with (
            service(answering(b"hello")) as port,
            whip_proxy(*_tls(files), "--downstream-request-id-header=X-Id") as proxy,
            _agent(port, authority, proxy.control_port) as agent,
        ):
            await agent.wait_registered()
            through = ("--proxy", proxy.url, "--write-out", " %{http_code}")
            identified = ("--header", "X-Id: req-17")
            finished = await curl(*through, *identified, "http://instance1.testdom/")
            assert finished.output == "hello 200"
            # In the domain, and so never looked for elsewhere; but nobody is that.
            finished = await curl(*through, "http://instance2.testdom/")
            assert finished.output.endswith(" 502")
            assert "instance1" in finished.output
            finished = await curl(*through, "http://instance1.testdom:81/")
            assert finished.output.endswith(" 502")
            assert "81" in finished.output
        assert any("instance1.testdom:80 (request req-17)" in line for line in proxy.lines)

    run(main())


def test_a_target_is_served_to_a_client_that_knows_of_no_proxy(authority: Authority) -> None:
    async def main() -> None:
        files = authority.server_files()
        async with (
            service(answering(b"hello")) as port,
            whip_proxy(*_tls(files), "--target=instance1.testdom") as proxy,
        ):
            finished = await curl("--write-out", " %{http_code}", proxy.url)
            assert finished.output.endswith(" 502"), "answered, not hung up on"
            assert "instance1.testdom" in finished.output
            async with _agent(port, authority, proxy.control_port) as agent:
                await agent.wait_registered()
                assert (await curl(proxy.url)).output == "hello"

    run(main())


def test_the_door_asks_for_a_password_and_is_reached_over_tls_only(authority: Authority) -> None:
    async def main() -> None:
        files = authority.server_files()
        door = ("--proxy-tls=true", f"--proxy-tls-key-path={files.key}")
        async with (
            service(answering(b"hello")) as port,
            whip_proxy(
                *(*_tls(files), *door, f"--proxy-tls-cert-path={files.cert}"),
                *("--proxy-auth-username=engineer", "--proxy-listen-host=127.0.0.1"),
                WHIP_PROXY_PASSWORD="s3cr t/ü",
            ) as proxy,
            _agent(port, authority, proxy.control_port) as agent,
        ):
            await agent.wait_registered()
            url = f"https://localhost:{proxy.port}"
            through = ("--include", "--proxy-cacert", str(authority.ca_cert), "--proxy", url)
            target = "http://instance1.testdom/"
            for user, status in (
                ((), "407"),
                (("--proxy-user", "engineer:wrong"), "407"),
                (("--proxy-user", "someone:s3cr t/ü"), "407"),
                (("--proxy-user", "engineer:s3cr t/ü"), "200"),
            ):
                finished = await curl(*through, *user, target)
                assert finished.output.startswith(f"HTTP/1.1 {status} "), finished
                challenged = 'Proxy-Authenticate: Basic realm="' in finished.output
                assert challenged == (status == "407")
            tunnelled = ("--proxytunnel", "--proxy-user", "engineer:s3cr t/ü")
            assert "hello" in (await curl(*through, *tunnelled, target)).output
            plain = await curl("--include", "--proxy", proxy.url, *tunnelled[1:], target)
            assert plain.output.startswith("HTTP/1.1 400 ")
            assert "over TLS only" in plain.output
        assert not any("s3cr" in line for line in proxy.lines)

    run(main())


def test_it_stops_quietly_while_streams_are_open(authority: Authority) -> None:
    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await reader.read()

    async def main() -> None:
        async with (
            service(greets) as port,
            whip_proxy("--drain-timeout=0.1", *_tls(authority.server_files())) as proxy,
            _agent(port, authority, proxy.control_port) as agent,
        ):
            await agent.wait_registered()
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(f"CONNECT instance1.testdom:{port} HTTP/1.1\r\n\r\n".encode())
            await read_head(reader)
            assert await reader.readline() == b"hello\n"
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.stop()
            # What is cut off does not look like an end.
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert await idle.read() == b""
            idle_writer.close()
            writer.close()

    run(main())


FREE = ("--proxy-listen-port=0", "--whip-tcp-listen-port=0", "--whip-grpc-listen-port=0")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--whip-tcp-listen-port={taken}", "choose another with --whip-tcp-listen-port"),
        ("--whip-grpc-listen-port={taken}", "choose another with --whip-grpc-listen-port"),
        ("--metrics-listen=127.0.0.1:{taken}", "choose another --metrics-listen"),
        ("--audit-log=/nowhere/audit.log", "--audit-log /nowhere/audit.log cannot be written"),
        ("--control-socket=/nowhere/a.sock", "cannot listen on unix:/nowhere/a.sock"),
    ],
)
def test_what_keeps_the_broker_from_starting_is_one_line_before_anything_listens(
    argument: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_run", lambda *_: pytest.fail("mitmproxy was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = whip("proxy", *PLAIN, *FREE, argument.format(taken=port))
    assert finished.exit_code == 1, finished.output
    [line] = finished.output.splitlines()
    assert line.startswith("Error: ")
    assert said in line


def test_what_the_preflight_takes_it_gives_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "_run", lambda *_: None)
    wanted = (f"--audit-log={tmp_path / 'a.log'}", f"--control-socket={tmp_path / 'a.sock'}")
    for _ in range(2):
        assert whip("proxy", *PLAIN, *FREE, *wanted, "--metrics-listen=").exit_code == 0
    assert not (tmp_path / "a.sock").exists()


def test_a_port_of_the_brokers_that_is_taken_later_is_told_on_stderr() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run_whip(
            *("proxy", *PLAIN, "--metrics-listen=", *FREE, "--"),
            *("--set", f"confdir={confdir()}", "--set", f"whip_tcp_listen_port={port}"),
        )
    assert finished.returncode == 1
    [line] = [line for line in finished.stderr.splitlines() if "whip:" in line]
    assert str(port) in line
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_login_is_right_or_wrong_as_a_whole() -> None:
    validator = ConstantTime("me", "pass wörd")
    assert validator("me", "pass wörd")
    for wrong in (("me", "pass"), ("you", "pass wörd"), ("me", ""), ("", ""), ("me", "\udcff")):
        assert not validator(*wrong)
