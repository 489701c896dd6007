"""Run a target under atheris: `python -m fuzz preamble -max_total_time=60`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["whip_core"]):
    from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"python -m fuzz {'|'.join(TARGETS)} [-max_total_time=SECONDS ...]")
    atheris.Setup([sys.argv[0], *options, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


main()
