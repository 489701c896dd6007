"""The Dockerfile: linted, and its build steps run in a virtual environment of their own.

There is no container engine among the tests' programs, so what a build would do is done
here: the same files are copied, the same commands run, with another place for /opt/whip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from dockerfile import lineage, stages, words
from programs import needs_program, path_of
from whip_core.broker_options import METRICS_LISTEN

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
STAGES = stages((ROOT / "Dockerfile").read_text())


@needs_program("hadolint")
def test_the_linter_finds_nothing() -> None:
    linted = subprocess.run(
        [path_of("hadolint"), "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("target", ["agent", "proxy"])
def test_a_target_runs_as_nobody_special_and_says_whether_it_is_well(target: str) -> None:
    instructions = [each for stage in lineage(STAGES, target) for each in stage.instructions]
    assert [rest for word, rest in instructions if word == "USER"] == ["10001:10001"]
    assert words(STAGES[target].having("ENTRYPOINT")[0])[0] == "whip"
    [health] = STAGES[target].having("HEALTHCHECK")
    port = METRICS_LISTEN.partition(":")[2] if target == "proxy" else "9465"
    assert f"127.0.0.1:{port}/healthz'" in words(health)[-1]


@pytest.mark.timeout(400)
def test_the_agents_build_steps_make_an_environment_without_mitmproxy(tmp_path: Path) -> None:
    home = tmp_path / "opt"
    build(tmp_path / "src", "build-agent", home)
    names = {path.name.partition("-")[0] for path in home.glob("lib/*/site-packages/*.dist-info")}
    assert {"whip_tunnel", "grpcio"} <= names
    assert not names & {"mitmproxy", "pip", "pytest"}
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    for command, status in ((["whip", "client", "--help"], 0), (["whip", "proxy"], 1)):
        done = subprocess.run(
            [str(home / "bin" / command[0]), *command[1:]],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
    assert "mitmproxy is not here" in done.stderr or "not available" in done.stderr


def test_the_proxys_build_steps_are_the_agents_with_mitmproxy_asked_for() -> None:
    """So that they need not be run as well: what the extra installs, the tutorial's test does."""
    steps = [STAGES[name].having("RUN") for name in ("build-agent", "build-proxy")]
    agents, proxys = steps
    assert [step.replace("dir .", "dir '.[proxy]'") for step in agents] == proxys != agents
    assert STAGES["build-agent"].base == STAGES["build-proxy"].base == "source"


def build(folder: Path, name: str, home: Path) -> None:
    """What a build of the stage does, with `home` for /opt/whip."""
    folder.mkdir()
    for stage in lineage(STAGES, name):
        for copied in stage.having("COPY"):
            *sources, target = copied.split()
            for source in sources:
                place = folder / target if target != "./" else folder / source
                if (ROOT / source).is_dir():
                    skip = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, place, ignore=skip)
                else:
                    shutil.copy(ROOT / source, place)
    for command in STAGES[name].having("RUN"):
        ours = command.replace("/opt/whip", str(home))
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(["/bin/sh", "-ec", ours], cwd=folder, env=environment, check=True)


def test_what_is_not_healthy_is_an_error(tmp_path: Path) -> None:
    [health] = STAGES["agent"].having("HEALTHCHECK")
    program = words(health)[-1].replace("9465", "1")
    with pytest.raises(urllib.error.URLError):
        exec(program, {})


def test_nothing_gets_into_a_build_but_what_its_steps_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {word for rest in STAGES["source"].having("COPY") for word in rest.split()[:-1]}
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
