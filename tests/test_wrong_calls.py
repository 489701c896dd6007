"""Calls that cannot be meant, and output that cannot be written: one line, and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from programs import needs_program, path_of
from whip_core.cli import main, whiphack

PLAIN = ("--whip-external-tcp-address=localhost", "--tls=false")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("top", "--interval", "nan"), "'nan' is not a number of seconds"),
        (("top", "--interval", "inf"), "is not in the range"),
        (("top", "--interval", "1e300"), "is not in the range"),
        (("agents", "--search", "\udcff"), "is not UTF-8"),
        (("agents", "--kick", "a b"), "'a b' is not a host name"),
        (("agents", "--kick", "\udcff"), "internationalized name"),
        (("proxy", *PLAIN, "--metrics-listen=abc"), "--metrics-listen 'abc' is not HOST:PORT"),
        (("proxy", *PLAIN, "--metrics-listen=\udcff:1"), "is not a host"),
        (("forward", *PLAIN, "--metrics-listen=abc", "1:a.b:80"), "is not HOST:PORT"),
        (("broker", *PLAIN, "--dial-listen=/x", "--metrics-listen=abc"), "is not HOST:PORT"),
        (("forward", *PLAIN, "2222:127.0.0.1:80"), "whip reaches names, not addresses"),
        (("forward", "--broker=localhost:1", "1:a.b:80"), "certificates), or name the broker's un"),
        (
            ("forward", "--broker=localhost:1", "--tls=false", "1:a.b:80"),
            "requires TLS: name",
        ),
        (("broker", *PLAIN, "--dial-listen=localhost:0"), "say who may dial at localhost:0"),
        (("pki", "createandsign", "client", "--domain=x", "--key-path="), "it is empty"),
    ],
)
def test_what_cannot_be_meant_is_a_wrong_call(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    [line] = result.output.splitlines()
    assert line.startswith("Error: ")
    assert says in line


@pytest.mark.parametrize(
    ("program", "arguments", "line"),
    [
        (main, ("nonsense",), "No such command 'nonsense' (see: main --help)"),
        (main, ("--nonsense",), "No such option '--nonsense' (see: main --help)"),
        (main, ("client", "b:1"), "... (see: main client --help)"),
        (main, ("doctor", "nonsense"), "... (see: main doctor --help)"),
        (main, ("addon-path", "x"), "... (see: main addon-path --help)"),
        (
            main,
            ("pki", "createandsign", "client"),
            "... (see: main pki createandsign client --help)",
        ),
        (whiphack, ("pki", "nonsense"), "... (see: whiphack pki --help)"),
        (main, ("top", "--sort", "nonsense"), "... (see: main top --help)"),
    ],
)
def test_a_wrong_call_is_one_line_that_says_where_help_is(
    program: click.Command, arguments: tuple[str, ...], line: str
) -> None:
    result = CliRunner().invoke(program, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    [said] = result.stderr.splitlines()
    assert said.startswith("Error: ")
    assert said.endswith(line.removeprefix("..."))


def test_a_command_without_anything_shows_its_help() -> None:
    for arguments in ((), ("pki",), ("doctor",)):
        assert "Commands:" in CliRunner().invoke(main, arguments).output


@needs_program("whip")
@pytest.mark.parametrize(
    ("to", "why"), [("/dev/full", "No space left on device"), ("&-", "standard output is closed")]
)
@pytest.mark.parametrize("arguments", ["--help", "plugins --json"])
def test_output_that_cannot_be_written_is_told_in_one_line(
    arguments: str, to: str, why: str
) -> None:
    if to.startswith("/") and not Path(to).exists():
        pytest.skip(f"there is no {to}")
    command = ("sh", "-c", f'exec "$0" {arguments} >{to}', path_of("whip"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: cannot write the output: {why}\n")


@needs_program("whip")
@pytest.mark.parametrize("arguments", [("mitmproxy",), ("proxy", *PLAIN, "--ui=console")])
def test_the_console_without_a_terminal_says_so_before_anything_starts(
    arguments: tuple[str, ...],
) -> None:
    done = subprocess.run(
        [path_of("whip"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: mitmproxy's console needs a terminal")
    assert done.stderr.count("\n") == 1


INTERRUPTED_IN = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
sys.argv = ["whip", "pki", "--help"]
from whip_core.program import {program}
{program}()
"""


@pytest.mark.parametrize(
    ("program", "module"),
    [("main", "click"), ("whiphack", "click"), ("main", "whip_core.commands.pki")],
)
def test_ctrl_c_while_modules_are_imported_is_one_word(program: str, module: str) -> None:
    code = INTERRUPTED_IN.format(program=program, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "Aborted!")
