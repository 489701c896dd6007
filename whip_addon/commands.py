"""The commands `whip proxy`, and mitmproxy's own tools with the addon loaded."""

from __future__ import annotations

import errno
import io
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from whip_addon import settings
from whip_core import broker_options, process
from whip_core.errors import SettingsError
from whip_core.names import check_port, normalize
from whip_core.options import Failure, common_options, option, was_given
from whip_core.settings import is_loopback

ADDON = Path(__file__).with_name("addon.py")
TOOLS = {"console": "mitmproxy", "web": "mitmweb", None: "mitmdump"}
TELL_AND_END = frozenset({"-h", "--help", "--version", "--options", "--commands"})
"""mitmproxy's arguments that need no terminal."""
VERBOSITY = {"debug": "debug", "info": "info", "warning": "warn", "error": "error"}
STREAMED_FROM = "1m"
"""Bodies over this go through as they come: enough to look into any page or API answer."""
STREAMED_FROM_IN_WEB = str(1 << 20)
"""The same; mitmweb reckons with it, and shows "NaN" for a number with a unit."""
FOR_MITMPROXY = "whip_addon.commands.arguments"


class Untouched(click.Command):
    """A command whose arguments are all somebody else's, `--help` and `--` among them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[FOR_MITMPROXY] = list(args)
        return super().parse_args(ctx, [])


class PassesOn(click.Command):
    """A command that leaves what follows `--` to mitmproxy."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[FOR_MITMPROXY] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])


def _tool(name: str) -> click.Command:
    @click.command(
        name,
        cls=Untouched,
        add_help_option=False,
        short_help=f"mitmproxy's {name}, with whip's addon loaded.",
    )
    @click.pass_context
    def tool(ctx: click.Context) -> None:
        _check_terminal(name, ctx.meta[FOR_MITMPROXY])
        _run(name, ["-s", str(ADDON), *ctx.meta[FOR_MITMPROXY]])

    return tool


mitmdump = _tool("mitmdump")
mitmproxy = _tool("mitmproxy")
mitmweb = _tool("mitmweb")


@click.command("addon-path")
def addon_path() -> None:
    """Print the path of the addon's script, for `mitmdump -s "$(whip addon-path)"`."""
    click.echo(ADDON)


@click.command(cls=PassesOn, epilog="What follows -- goes to mitmproxy.")
@common_options(metrics_listen=broker_options.METRICS_LISTEN)
@option("--proxy-listen-host", default="127.0.0.1", help="Where the proxy listens.")
@option(
    "--proxy-listen-port",
    type=click.IntRange(0, 65535),
    default=8080,
    help="The port it listens on.",
)
@option(
    "--target",
    metavar="[https://]NAME[:PORT]",
    help="Be a reverse proxy to this one name, instead of a proxy for all.",
)
@option("--ui", type=click.Choice(["console", "web"]), help="One of mitmproxy's screens.")
@broker_options.declare(settings.OPTIONS)
@click.pass_context
def proxy(ctx: click.Context, /, **values: Any) -> None:
    """A proxy to private services by name: mitmdump with whip's addon and good defaults."""
    host, port = values["proxy_listen_host"], values["proxy_listen_port"]
    passed_on = ctx.meta[FOR_MITMPROXY]
    chosen = broker_options.chosen(
        settings.OPTIONS, values, metrics_given=was_given("metrics_listen")
    )
    checked = _check(chosen, host)
    arguments = ["-s", str(ADDON), "--listen-host", host, "--listen-port", str(port)]
    defaults = {
        "termlog_verbosity": VERBOSITY[values["log_level"]],
        "stream_large_bodies": STREAMED_FROM_IN_WEB if values["ui"] == "web" else STREAMED_FROM,
    }
    if values["target"]:
        arguments += ["--mode", _reverse_mode(values["target"])]
        # Connected early, mitmproxy hangs up when that fails; connected late, it answers.
        defaults["connection_strategy"] = "lazy"
    arguments += _as_arguments(defaults, passed_on)
    for setting in settings.OPTIONS:
        arguments += _set(setting, chosen[setting.name])
    _check_terminal(TOOLS[values["ui"]], passed_on)
    _check_free(host, port)
    if not any("whip_" in text for text in passed_on):  # what stands there wins
        _check_startable(checked)
    _run(TOOLS[values["ui"]], [*arguments, *passed_on])


def _check(chosen: dict[str, Any], host: str) -> settings.AddonSettings:
    """The settings; everything that can be known to be wrong before mitmproxy starts is told."""
    _mitmproxy_tools()
    from whip_addon.door import server_context as door_context
    from whip_addon.lifecycle import broker_of
    from whip_core.certificates import check_files
    from whip_core.settings import RemoteSettings, Role

    try:
        checked = settings.read(chosen, settings.by_flag)
        broker_of(checked.broker, checked.plugins)
        if checked.broker.tls is not None:
            dials_elsewhere = isinstance(checked.broker, RemoteSettings)
            check_files(checked.broker.tls, Role.AGENT if dials_elsewhere else Role.BROKER)
        door_context(checked.door)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if checked.door.login is None and not is_loopback(host):
        raise click.UsageError(
            f"refusing to listen on {host or 'all interfaces'} without a password: give "
            "--proxy-auth-username and a password, or listen on loopback"
        )
    return checked


def _reverse_mode(target: str) -> str:
    url = urlsplit(target if "://" in target else f"http://{target}")
    try:
        if url.scheme not in ("http", "https") or url.path.strip("/") or url.query:
            raise ValueError(f"{target!r} is not NAME[:PORT] or https://NAME[:PORT]")
        name = normalize(url.hostname or "")
        default_port = 443 if url.scheme == "https" else 80
        port = check_port(default_port if url.port is None else url.port)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--target") from error
    return f"reverse:{url.scheme}://{name}:{port}"


def _set(setting: broker_options.Option, value: Any) -> list[str]:
    """The value as arguments for mitmproxy, unless it is the default."""
    if setting.type is broker_options.TEXTS:
        return [part for text in value for part in ("--set", f"{setting.name}={text}")]
    if value == setting.default:
        return []
    text = str(value).lower() if setting.type is bool else str(value)
    return ["--set", f"{setting.name}={text}"]


def _as_arguments(defaults: dict[str, str], passed_on: Sequence[str]) -> list[str]:
    """Our defaults of mitmproxy's options; an option that the user sets is the user's."""
    theirs = {text.removeprefix("--set=").partition("=")[0] for text in passed_on}
    return [
        part
        for name, value in defaults.items()
        if name not in theirs
        for part in ("--set", f"{name}={value}")
    ]


def _check_free(host: str, port: int) -> None:
    """Raises `Failure` if the proxy cannot listen there; mitmproxy says it in many words."""
    try:
        addresses = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise click.BadParameter(
            f"{host!r}: {error.strerror}", param_hint="--proxy-listen-host"
        ) from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # one of localhost's addresses, on a machine without IPv6
                raise Failure(
                    f"cannot listen on {host or 'all interfaces'} port {port}: "
                    f"{error.strerror}; choose another --proxy-listen-port"
                ) from error


def _check_startable(checked: settings.AddonSettings) -> None:
    from whip_addon.preflight import check_startable

    try:
        check_startable(checked)
    except SettingsError as error:
        raise Failure(str(error)) from error


def _mitmproxy_tools() -> Any:
    try:
        from mitmproxy.tools import main
    except ModuleNotFoundError as error:
        raise Failure(
            f"mitmproxy is not here ({error}): pip install 'whip-tunnel[proxy]'"
        ) from error
    return main


def _check_terminal(tool: str, arguments: Sequence[str]) -> None:
    """mitmproxy's screen finds out when everything has been started, in many words."""
    if tool != "mitmproxy" or not TELL_AND_END.isdisjoint(arguments):
        return
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        raise Failure(
            "mitmproxy's console needs a terminal for its input and its output: use --ui web, "
            "or mitmdump (`whip proxy` without --ui, `whip mitmdump`)"
        )


def _run(tool: str, arguments: list[str]) -> None:
    main = _mitmproxy_tools()
    # mitmproxy names itself by this, and looks there for options that are gone.
    sys.argv = [tool, *arguments]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # its log, which somebody may follow
    process.prepare()
    sys.exit(getattr(main, tool)(arguments))
