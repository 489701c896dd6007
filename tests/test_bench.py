"""The bench: its arithmetic, its tables, its link, and a run as small as it gets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench import floor, load, machine, report, rounds, rows, usage
from bench.link import Link
from bench.processes import DidNotWork, Missing, find, free_ports, running, wait_until
from bench.report import Results
from bench.rounds import Series
from bench.rows import Measured
from bench.spread import Spread, ratios
from programs import needs_program
from tunnel import run

pytestmark = pytest.mark.once

MACHINE = {"cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "load_before": 0.1, "python": "3.11.0"}
ROUND_TRIP = 0.05


# Numbers


def test_a_spread_is_the_median_and_how_far_the_rounds_were_apart() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0, rounds=3)
    with pytest.raises(ValueError, match="no round"):
        Spread.of([])


def test_a_ratio_is_taken_round_by_round() -> None:
    # The second round was disturbed, for both: no ratio of medians would say 2, 2, 2.
    assert ratios([20.0, 2.0, 24.0], [10.0, 1.0, 12.0]) == [2.0, 2.0, 2.0]
    assert ratios([20.0, 5.0], [10.0, 0.0]) == [2.0]


def test_a_rate_has_to_reach_its_target_and_a_cost_to_stay_below() -> None:
    [faster] = rows.chosen("forward-bulk")
    assert (faster.met(1.0), faster.met(0.99)) == (True, False)
    assert (rows.DIAL_NEAR.met(1.0), rows.DIAL_NEAR.met(1.01)) == (True, False)


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (0.912, "0.91")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


# Rows


def test_rows_are_chosen_by_the_beginning_of_their_names() -> None:
    assert [row.name for row in rows.chosen("dial forward-32")] == [
        *("dial-far", "dial-near"),
        *("forward-32-asyncssh", "forward-32-ssh"),
    ]
    assert rows.chosen("") == rows.ROWS
    with pytest.raises(ValueError, match="no row nonsense: the rows are proxy-keepalive, "):
        rows.chosen("dial nonsense")


def test_only_the_contenders_of_the_chosen_rows_are_measured() -> None:
    only = rows.chosen("forward-32 dial")
    assert rows.needed(only, everybody=False) == {
        "keep-alive-32": (rows.FORWARD, rows.SSH_FAST, rows.ASYNCSSH)
    }
    assert rows.needed(only, everybody=True) == {"keep-alive-32": rows.CONTENDERS}


def test_each_contender_can_be_started_and_each_workload_exists() -> None:
    assert set(rows.CONTENDERS) == set(rounds.STARTS)
    assert {ratio.workload for ratio in rows.RATIOS} == set(load.WORKLOADS)


# Results


def test_wrks_results_are_read_from_its_output() -> None:
    output = 'Running 1s test\n{"requests": 100, "seconds": 0.5, "p99_ms": 7.5, "errors": 2}\n'
    assert load.parse(output) == load.Done(amount=100, rate=200.0, errors=2, p99_ms=7.5)
    with pytest.raises(DidNotWork, match="unable to connect"):
        load.parse("", "unable to connect to 127.0.0.1:1")


def _series(contender: str, *rates: float) -> Series:
    series = Series(contender, "keep-alive-1")
    for rate in rates:
        done = load.Done(amount=2000, rate=rate, errors=1, p99_ms=3.0)
        series.add(done, {"broker": 0.2}, {"broker": 2048.0})
    return series


def _results() -> Results:
    results = Results(dict(MACHINE), {"rounds": 2})
    results.series = [_series(rows.FORWARD, 900.0, 1000.0), _series(rows.SSH_FAST, 1000.0, 1000.0)]
    results.rows = rounds.compare(rows.chosen("forward-1"), results.series)
    results.missing["Envoy"] = "it is not installed"
    return results


def test_a_row_compares_two_contenders_under_its_workload() -> None:
    [measured] = _results().rows
    assert (measured.row.name, measured.met) == ("forward-1", True)
    assert measured.spread == Spread(0.95, 0.9, 1.0, 2)


def test_a_row_without_one_of_its_contenders_has_no_number() -> None:
    assert rounds.compare(rows.ROWS, [_series(rows.FORWARD, 1.0)]) == []


def test_costs_are_per_ten_thousand_requests() -> None:
    series = _series("somebody", 1.0, 1.0)
    assert series.cost == {"broker": pytest.approx(1.0)}
    assert (series.errors, series.resident_kb) == (2, {"broker": 2048.0})


def test_the_report_has_a_line_for_each_row_and_says_what_is_missing() -> None:
    results = _results()
    results.rows.append(Measured(rows.DIAL_NEAR, Spread.of([1.5]), "in a hurry"))
    text = report.as_text(results, rows.chosen("forward-1 dial"))
    lines = [line.split() for line in text.splitlines()]
    assert ["forward-1", "0.95", "0.90", "1.00", "2", ">=", "0.8", "ok"] in [x[:8] for x in lines]
    assert "<= 1 ms" in text
    assert "MISSED  a dial over mTLS on loopback, median (in a hurry)" in text
    assert "950 (900-1,000)" in text
    assert "1.00 / 10,000 requests" in text
    assert "not measured: Envoy: it is not installed" in text
    assert "rows without a number: dial-far" in text
    assert "BUSY" not in text


def test_the_report_says_when_the_machine_was_busy() -> None:
    for busy in ({"load_before": 2.5}, {"used_by_others": 0.4}):
        assert "THE MACHINE IS BUSY" in report.as_text(Results(MACHINE | busy, {}), ())


def test_what_others_use_is_a_part_of_the_machine_without_us() -> None:
    others = machine.Others()
    enough = time.process_time() + 0.2
    while time.process_time() < enough:
        pass
    assert 0 <= others.share() < 1


def test_the_json_has_all_of_it() -> None:
    data = json.loads(json.dumps(report.as_json(_results())))
    [row] = data["rows"]
    assert row["what"].startswith(rows.FORWARD)
    assert (row["median"], row["low"], row["high"], row["rounds"]) == (0.95, 0.9, 1.0, 2)
    assert (row["target"], row["target_is"], row["met"]) == (0.8, "at least", True)
    assert data["rates"][0]["cpu_seconds"] == {"broker": pytest.approx(1.0)}
    assert data["rates"][0]["resident_mb"] == {"broker": 2.0}
    assert data["machine"]["cpu"] == "a CPU"


# The link


@asynccontextmanager
async def _echo() -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_a_link_delivers_everything_later_and_in_order() -> None:
    sent = [bytes([number]) * 1000 for number in range(50)]

    async def main() -> tuple[bytes, float]:
        async with _echo() as port, Link(ROUND_TRIP, port) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            started = time.monotonic()
            for piece in sent:
                writer.write(piece)
                await asyncio.sleep(0)
            writer.write_eof()
            received = await reader.read()
            writer.close()
            await writer.wait_closed()
            return received, time.monotonic() - started

    received, seconds = run(main())
    assert received == b"".join(sent)
    assert seconds >= 2 * ROUND_TRIP  # one for the connection, one there and back


# Processes


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(Missing, match="no-such-program is not installed"):
        find("no-such-program")


def test_a_program_that_ends_early_shows_its_last_words(tmp_path: Path) -> None:
    words = ("-c", "import sys; sys.exit('no such luck')")
    with (
        running("short", sys.executable, *words, folder=tmp_path) as program,
        pytest.raises(DidNotWork, match="short has ended: no such luck"),
    ):
        wait_until(lambda: False, "never", program)


def test_what_a_program_and_its_children_use_is_counted(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ninput()"
    shell = f'{sys.executable} -c "{busy}"; exit'
    with running("busy", "/bin/sh", "-c", shell, folder=tmp_path, talks=True) as program:
        meter = usage.Meter({"busy": program.pid})
        assert program.answer() == "done"
        assert len(usage.tree(program.pid)) == 2
        assert usage.cpu_seconds(program.pid) >= 0.19
        assert meter.read()["busy"] <= usage.cpu_seconds(program.pid)
        assert usage.resident_kb(program.pid) > 1000
    assert usage.descriptors(os.getpid()) > 3
    assert len(set(free_ports(3))) == 3


# What gRPC alone takes


@pytest.mark.parametrize("kind", floor.KINDS)
def test_the_floor_counts_what_calls_add_to_a_bare_server(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WARM_UP", 1)
    monkeypatch.setattr(floor, "SETTLE", 0.0)
    assert 0 < floor.kilobytes(kind, tmp_path, 20) < 500


# All of it


@needs_program("nginx", "whip", "wrk")
def test_a_small_run_prints_its_table_and_writes_its_files(tmp_path: Path) -> None:
    small = (
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--bulk-mb",
        "1",
        "--only",
        "proxy-keepalive-1 dial-near plugins",
    )
    done = subprocess.run(
        [sys.executable, "-m", "bench", *small, "--out", str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rows without a number" not in done.stdout, done.stdout
    data = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in data["rows"]] == ["proxy-keepalive-1", "dial-near", "plugins"]
    assert all(row["median"] > 0 for row in data["rows"])
    assert {rate["contender"]: rate["errors"] for rate in data["rates"]} == {
        rows.STRAIGHT: 0,
        rows.PROXY: 0,
    }
