"""`make bench`: measure, print the report, and write it as JSON and as a picture."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import agents, dials, idle, machine, picture, report, rounds, service
from bench.processes import DidNotWork, Missing
from bench.report import Results
from bench.rows import (
    AGENTS,
    AGENTS_PARKED,
    AGENTS_PING,
    CONNECTION_AGENT,
    CONNECTION_BROKER,
    CONNECTION_MITMPROXY,
    CONNECTION_PARKED,
    DIAL_FAR,
    DIAL_NEAR,
    IDLE_AGENT,
    PLUGINS,
    Measured,
    Row,
    chosen,
    needed,
)


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    rows = chosen(options.only)
    results = Results(
        machine.describe(),
        {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "bulk MB": options.bulk_mb,
            "agents": options.agents,
            "only": options.only,
        },
    )
    began, others = time.monotonic(), machine.Others()
    with tempfile.TemporaryDirectory(prefix="whip-bench-") as folder:
        _measure(Path(folder), rows, options, results)
    order = {row.name: number for number, row in enumerate(rows)}
    results.rows = sorted(
        (one for one in results.rows if one.row.name in order), key=lambda one: order[one.row.name]
    )
    results.settings["minutes"] = round((time.monotonic() - began) / 60, 1)
    results.machine["used_by_others"] = round(others.share(), 2)
    print(report.as_text(results, rows))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "bench.json"
    path.write_text(json.dumps(report.as_json(results), indent=1) + "\n")
    print(f"written: {path}, {picture.draw(path, options.out / 'bench.png')}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each sample of requests")
    parser.add_argument("--bulk-mb", type=int, default=1000, help="the size of the big body")
    parser.add_argument("--agents", type=int, default=10_000, help="registered at one broker")
    parser.add_argument(
        "--watch", type=int, default=40, help="seconds of pinging them: each has its turn twice"
    )
    parser.add_argument("--only", default="", help="rows, by the beginnings of their names")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    try:
        chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _measure(
    folder: Path, rows: tuple[Row, ...], options: argparse.Namespace, results: Results
) -> None:
    agents.descriptor_limit()  # the programs get it from us

    def group(members: Iterable[Row], measure: Callable[[], Iterable[Measured]]) -> None:
        wanted = [row.name for row in members if row in rows]
        if not wanted:
            return
        progress(f"{', '.join(wanted)}")
        try:
            results.rows += measure()  # one by one: what came before a failure stays
        except (DidNotWork, Missing, OSError) as error:
            results.missing[", ".join(wanted)] = str(error)

    with contextlib.ExitStack() as stack:
        try:
            _, port = stack.enter_context(service.nginx(folder, options.bulk_mb * 1_000_000))
        except Missing as error:
            results.missing["all that needs a service"] = str(error)
        else:
            group([DIAL_NEAR], lambda: [dials.near(folder, port, options.rounds)])
            group([PLUGINS], lambda: [dials.plugins(folder, port, options.rounds)])
            group([DIAL_FAR], lambda: [dials.far(folder, port, options.rounds)])
            _rates(folder, port, rows, options, results)
            group([IDLE_AGENT], lambda: [idle.agent_process(folder, port, options.rounds)])
            group(
                [CONNECTION_AGENT, CONNECTION_BROKER],
                lambda: idle.connections(folder, port, options.rounds, options.agents, progress),
            )
    group(
        [AGENTS, AGENTS_PING, AGENTS_PARKED, CONNECTION_PARKED],
        lambda: agents.on_broker(folder, options.agents, options.watch, progress),
    )
    group([CONNECTION_MITMPROXY], lambda: agents.in_mitmproxy(folder, options.agents, progress))


def _rates(
    folder: Path,
    port: int,
    rows: tuple[Row, ...],
    options: argparse.Namespace,
    results: Results,
) -> None:
    """The ratios: without ONLY every contender is measured, with it those of its rows."""
    plan = needed(rows, everybody=not options.only)
    names = list(dict.fromkeys(name for wanted in plan.values() for name in wanted))

    def missing(name: str, why: str) -> None:
        progress(f"{name}: {why}")
        results.missing[name] = why

    with rounds.started(names, folder, port, missing) as contenders:
        for workload, wanted in plan.items():
            found = [contenders[name] for name in wanted if name in contenders]
            try:
                results.series += rounds.run(
                    workload, found, options.rounds, options.seconds, progress, missing
                )
            except Missing as error:
                missing(workload, str(error))
    results.rows += rounds.compare(rows, results.series)


if __name__ == "__main__":
    main()
