"""The results as text for people and as JSON for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load import WORKLOADS
from bench.machine import is_busy
from bench.rounds import Series
from bench.rows import TIMES, Measured, Row
from bench.spread import Spread


@dataclass
class Results:
    """All that one run has found. `missing` says what was not measured, and why."""

    machine: dict[str, str | int | float]
    settings: dict[str, Any]
    rows: list[Measured] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def as_json(results: Results) -> dict[str, Any]:
    """Plain values: `json.dumps` takes them as they are."""
    return {
        "machine": results.machine,
        "settings": results.settings,
        "rows": [_row(measured) for measured in results.rows],
        "rates": [_series(series) for series in results.series],
        "missing": results.missing,
    }


def _row(measured: Measured) -> dict[str, Any]:
    row = measured.row
    return {
        "name": row.name,
        "what": row.what,
        "unit": row.unit,
        "target": row.target,
        "target_is": "at least" if row.at_least else "at most",
        **_spread(measured.spread),
        "met": measured.met,
        "note": measured.note,
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "contender": series.contender,
        "workload": series.workload,
        "unit": WORKLOADS[series.workload].unit,
        **_spread(Spread.of(series.rates)),
        "p99_ms": Spread.of(series.p99_ms).median if series.p99_ms else None,
        "errors": series.errors,
        "cpu_seconds_per": series.cost_unit,
        "cpu_seconds": series.cost,
        "resident_mb": {name: size / 1024 for name, size in series.resident_kb.items()},
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "low": spread.low,
        "high": spread.high,
        "rounds": spread.rounds,
    }


# For people


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_text(results: Results, rows: Sequence[Row]) -> str:
    """The whole report; `rows` are those that were asked for."""
    parts = [
        _header(results),
        _table_of_rows(results),
        _table_of_rates(results.series),
        _table_of_costs(results.series),
        _not_measured(results, rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(results: Results) -> str:
    machine = dict(results.machine)
    cpu, cores, memory = machine.pop("cpu"), machine.pop("cores"), machine.pop("memory_gb")
    load, others = float(machine.pop("load_before")), float(machine.pop("used_by_others", 0))
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if value)
    settings = ", ".join(f"{name} {value}" for name, value in results.settings.items() if value)
    lines = [f"{cpu}, {cores} cores, {memory} GB; {versions}", f"settings: {settings}"]
    if is_busy(load, others):
        lines.append(
            f"THE MACHINE IS BUSY (load average {load:g} before the start, "
            f"others used {others:.0%} of it meanwhile): "
            "believe ratios more than rates, and neither much"
        )
    return "\n".join(lines)


def _table_of_rows(results: Results) -> str:
    lines = [("row", "median", "least", "most", "n", "target", "", "what")]
    for measured in results.rows:
        row, spread = measured.row, measured.spread
        sign = ">=" if row.at_least else "<="
        unit = "" if row.unit == TIMES else f" {row.unit}"
        lines.append(
            (
                row.name,
                number(spread.median),
                number(spread.low),
                number(spread.high),
                str(spread.rounds),
                f"{sign} {row.target:g}{unit}",
                "ok" if measured.met else "MISSED",
                f"{row.what} ({measured.note})" if measured.note else row.what,
            )
        )
    return _aligned(lines, left={0, 5, 6, 7}) if results.rows else ""


def _table_of_rates(series: Sequence[Series]) -> str:
    workloads = list(dict.fromkeys(one.workload for one in series))
    if not workloads:
        return ""
    rates = {(one.contender, one.workload): one for one in series}
    lines = [("median (least-most)", *(WORKLOADS[name].what for name in workloads))]
    for contender in dict.fromkeys(one.contender for one in series):
        cells = []
        for workload in workloads:
            one = rates.get((contender, workload))
            cells.append(_rate(Spread.of(one.rates)) if one else "-")
        lines.append((contender, *cells))
    units = ("", *(WORKLOADS[name].unit for name in workloads))
    return _aligned([lines[0], units, *lines[1:]], left={0})


def _rate(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.low)}-{number(spread.high)})"


def _table_of_costs(series: Sequence[Series]) -> str:
    lines = [("costs", "workload", "p99 ms", "errors", "CPU seconds per", "by process", "MB")]
    for one in series:
        if not one.cpu_seconds:
            continue
        total = sum(one.cost.values())
        lines.append(
            (
                one.contender,
                one.workload,
                number(Spread.of(one.p99_ms).median) if one.p99_ms else "-",
                str(one.errors),
                f"{total:.2f} / {one.cost_unit}",
                ", ".join(f"{name} {cpu:.2f}" for name, cpu in one.cost.items()),
                ", ".join(f"{name} {size / 1024:.0f}" for name, size in one.resident_kb.items()),
            )
        )
    return _aligned(lines, left={0, 1, 4, 5, 6}) if len(lines) > 1 else ""


def _not_measured(results: Results, rows: Sequence[Row]) -> str:
    lines = [f"not measured: {name}: {why}" for name, why in results.missing.items()]
    measured = {one.row.name for one in results.rows}
    left = [row.name for row in rows if row.name not in measured]
    if left:
        lines.append(f"rows without a number: {', '.join(left)}")
    return "\n".join(lines)


def _aligned(lines: Iterable[Sequence[str]], left: set[int]) -> str:
    table = list(lines)
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )
