"""The tutorial, run as it stands: from a clone to the flow of a private service, by the clock.

Only the ports are others, so that it can run beside anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from processes import free_ports, started
from programs import needs_program
from tunnel import run

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
STEP = re.compile(
    r"(?:<!-- in its own terminal; goes on at: (?P<until>[^\n]+) -->\n)?"
    r"```sh\n(?P<script>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
NOT_IN_A_CLONE = (".git", ".venv*", "build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")


@dataclass
class Step:
    script: str
    until: str | None
    output: list[str]


def steps(folder: Path) -> list[Step]:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    ports = {port: str(free) for port, free in zip((5051, 50051, 8080), free_ports(3), strict=True)}
    for port, free in ports.items():
        text = re.sub(rf"\b{port}\b", free, text)
    # What the page leaves at its default has to be another port too, beside other tests.
    [reverse] = free_ports(1)
    text = text.replace(
        "whip proxy ",
        f"whip proxy --proxy-listen-port={ports[8080]} --whip-grpc-listen-port={ports[50051]} "
        f"--whip-tcp-listen-port={reverse} --metrics-listen= ",
    )
    text = text.replace("whip client ", "whip client --metrics-listen= ")
    text = text.replace(
        "whip replay-across ", f"whip replay-across --proxy=localhost:{ports[8080]} "
    )
    return [
        Step(found["script"], found["until"], (found["output"] or "").splitlines())
        for found in STEP.finditer(text)
    ]


def test_every_block_of_the_page_is_a_step(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    assert text.count("```sh") == len(steps(tmp_path))
    assert text.count("```text") == sum(bool(step.output) for step in steps(tmp_path))
    assert text.count("in its own terminal;") == 3


@needs_program("curl")
@pytest.mark.timeout(600)
def test_a_reader_gets_from_a_clone_to_a_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path / "whip"

    async def main() -> float:
        begun = time.monotonic()
        shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_IN_A_CLONE))
        install, *others = steps(clone)
        python = Path(sys.base_prefix) / "bin"
        env = {"HOME": str(tmp_path), "PATH": f"{python}:{os.environ['PATH']}"}
        async with started("sh", "-ec", install.script, cwd=clone, env=env) as process:
            assert await process.ended() == 0, str(process)
        async with contextlib.AsyncExitStack() as stack:
            for step in others:
                script = f". ../.venv/bin/activate\n{step.script}"
                process = await stack.enter_async_context(
                    started("sh", "-ec", script, cwd=clone / "try", env=env)
                )
                if step.until is not None:
                    await process.says(step.until)
                    continue
                status = await process.ended()
                for line in step.output:
                    assert line in str(process), str(process)
                assert status == 0, str(process)
        return time.monotonic() - begun

    # Told (`make tutorial`), and not asserted: most of it is pip, and machines can be busy.
    seconds = round(run(main(), patience=550))
    with capsys.disabled():
        print(f"\nthe tutorial, from a clone to the flow and a replay: {seconds} s")
