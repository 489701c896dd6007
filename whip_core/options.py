"""How commands declare their options, log, and end: one way for all of them."""

from __future__ import annotations

import asyncio
import math
import os
import re
import traceback
from collections.abc import Callable, Coroutine
from typing import IO, Any, TypeVar

import click

from whip_core import process
from whip_core.errors import SettingsError, WhipError
from whip_core.settings import TLSFiles

Command = TypeVar("Command", bound=Callable[..., Any])
LABELS = r"[,\s]+(?=[^\s,=]+=)"
"""What separates KEY=VALUE from the next one in the environment: a value may have commas."""
PLUGIN_SETTINGS = r"[,\s]+(?=[^\s,=.]+\.[^\s,=]+=)"
"""The same for PLUGIN.KEY=VALUE."""
LOG_LEVELS = ("debug", "info", "warning", "error")


LOG_LEVEL = "whip_core.options.log_level"
"""Where the level of a command that runs no broker or agent is kept, in its context."""


class Failure(click.ClickException):
    """A failure that is told in one line; exit status 1. With --log-level=debug, by a traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        context = click.get_current_context(silent=True)
        self._is_traced = context is not None and context.meta.get(LOG_LEVEL) == "debug"

    def show(self, file: IO[Any] | None = None) -> None:
        if self._is_traced:
            click.echo("".join(traceback.format_exception(self)), file=file, nl=False, err=True)
        super().show(file)


class Boolean(click.types.BoolParamType):
    """click's, but for the empty value: `--tls=$UNSET` must not turn TLS off."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if value == "":
            self.fail("it is empty; say true or false", param, ctx)
        try:
            return bool(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is neither true nor false", param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds that can be waited for: nan is within any range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


class MayBeEmpty(click.Option):
    """An option whose empty value means something, also in the environment (`WHIP_X=`).

    For all others a variable that is empty is as good as unset, as click has it.
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        assert isinstance(self.envvar, str)
        return os.environ.get(self.envvar)


class Several(click.Option):
    """A repeatable option. In the environment its values are separated by commas or spaces.

    `separator` is a pattern, for one whose values may have these in them.
    """

    def __init__(self, *names: Any, separator: str = r"[,\s]+", **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self._separator = separator

    def value_from_envvar(self, ctx: click.Context) -> Any:
        text = self.resolve_envvar_value(ctx)
        return None if text is None else [each for each in re.split(self._separator, text) if each]


def utf8(_: click.Context, param: click.Parameter, value: Any) -> Any:
    """A callback for what is sent on: bytes that are not text come as surrogates."""
    for text in value if isinstance(value, tuple) else (value,):
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise click.BadParameter(f"{text!r} is not UTF-8") from error
    return value


def option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    """`click.option` that can also be given as WHIP_NAME, and whose booleans take a value.

    A leading `whip-` need not be said twice: --whip-grpc-listen-port is WHIP_GRPC_LISTEN_PORT,
    and WHIP_WHIP_GRPC_LISTEN_PORT where both are set.
    `--tls`, `--tls=true` and `--tls=false` all work.
    """
    long = next(name for name in names if name.startswith("--"))
    variable = "WHIP_" + long.removeprefix("--").replace("-", "_").upper()
    short = variable.replace("WHIP_WHIP_", "WHIP_")
    attributes.setdefault("envvar", variable if short == variable else [variable, short])
    attributes.setdefault("show_default", True)
    attributes.setdefault("show_envvar", True)
    if attributes.get("multiple"):
        attributes.setdefault("cls", Several)
    if attributes.get("type") is bool:
        attributes.update(type=Boolean(), is_flag=False, flag_value="true")
        attributes.setdefault("metavar", "true|false")
    return click.option(*names, **attributes)


def _keep_level(context: click.Context, _: click.Parameter, level: str) -> None:
    context.meta[LOG_LEVEL] = level


log_level_option = option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    expose_value=False,
    callback=_keep_level,
    help="With debug, a failure shows where it comes from.",
)
"""For a command that only fails; one that runs takes `common_options`."""
json_option = option("--json", "as_json", type=bool, default=False, help="JSON, for programs.")


def common_options(metrics_listen: str) -> Callable[[Command], Command]:
    """The options that every long-running command has (DESIGN §7, row "all")."""

    def decorate(command: Command) -> Command:
        for declare in reversed(
            [
                option("--log-level", type=click.Choice(LOG_LEVELS), default="info"),
                option(
                    "--metrics-listen",
                    cls=MayBeEmpty,
                    default=metrics_listen,
                    metavar="HOST:PORT",
                    help="Where /metrics, /healthz and /readyz are served; empty turns it off.",
                ),
                option("--tls", type=bool, default=True, help="Mutual TLS on every connection."),
                option("--tls-key-path", type=click.Path(), help="Our private key (PEM)."),
                option("--tls-cert-path", type=click.Path(), help="Our certificate (PEM)."),
                option(
                    "--tls-ca-cert-path",
                    type=click.Path(),
                    help="The CA that the other end's certificate must be from (PEM).",
                ),
                option(
                    "--tls-crl-path",
                    type=click.Path(),
                    help="Revocation lists of the CA, one of each if there are several (PEM).",
                ),
                option(
                    "--allow-plaintext",
                    type=bool,
                    default=False,
                    help="Let --tls=false leave this machine.",
                ),
            ]
        ):
            command = declare(command)
        return command

    return decorate


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def tls_files(
    tls: bool,
    key: str | None,
    cert: str | None,
    ca: str | None,
    crl: str | None = None,
    *,
    spell: Callable[[str], str] = _flag,
    instead: str = "give --tls=false on loopback",
) -> TLSFiles | None:
    """The TLS options as one value; `spell` tells how one such as tls_key_path is written.

    Raises `SettingsError` if one is missing, with what to do `instead` of giving it.
    """
    if not tls:
        return None
    if not (key and cert and ca):
        values = {"tls_key_path": key, "tls_cert_path": cert, "tls_ca_cert_path": ca}
        missing = ", ".join(spell(name) for name, value in values.items() if not value)
        raise SettingsError(
            f"TLS is on, so give {missing} (`whip pki --help` makes certificates), or {instead}"
        )
    return TLSFiles.of(key, cert, ca, crl)


def was_given(name: str) -> bool:
    """Whether the parameter of the running command came from the user, not its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def hangup_is_ours() -> bool:
    """Whether SIGHUP means "reopen the logs": where there is a terminal, it has gone away."""
    return not os.isatty(0)


def run(main: Coroutine[Any, Any, None], log_level: str) -> None:
    """Run a command's coroutine to its end; a failure is one line and exit status 1."""
    process.prepare()
    try:
        with asyncio.Runner(loop_factory=process.new_loop) as runner:
            runner.run(main)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (WhipError, OSError) as error:
        if log_level == "debug":
            raise
        raise Failure(str(error)) from error
