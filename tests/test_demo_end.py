"""`whip demo`, as a process: what it leaves behind when it is told to end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from processes import started
from programs import needs_program
from tunnel import run

pytestmark = [needs_program("whip"), pytest.mark.once]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_however_it_is_ended_it_leaves_no_process_and_no_keys(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def main() -> None:
        async with started("whip", "demo", "--keep", env={"TMPDIR": str(tmp_path)}) as demo:
            await demo.says("4. mitmproxy")  # the agent runs
            children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
            assert children
            demo.signal(number)
            demo.signal(number)
            status = await demo.ended()
            assert status == (0 if number == signal.SIGINT else 128 + number), str(demo)
            assert demo.lines[-1] == "stopped"
            assert list(tmp_path.iterdir()) == []
            for child in children:
                with pytest.raises(ProcessLookupError):
                    os.kill(int(child), 0)

    run(main())
