"""The results as a picture: how far each row is beyond its target, and the rates.

As a program: `python -m bench.picture bench.json bench.png` (in `tests`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OURS, THEIRS, MISSED = "#1f77b4", "#b0b0b0", "#d62728"


def draw(source: Path, target: Path) -> str:
    """Draw the JSON file `source`; gives the picture's path, or why there is none."""
    try:
        import matplotlib as mpl
    except ImportError:
        return "no picture (matplotlib is not installed)"
    mpl.use("Agg")
    from matplotlib import pyplot

    results = json.loads(source.read_text())
    workloads = list(dict.fromkeys(one["workload"] for one in results["rates"]))
    figure = pyplot.figure(figsize=(13, 9 if workloads else 5), layout="constrained")
    upper, *lower = figure.subfigures(2 if workloads else 1, 1, squeeze=False)[:, 0]
    _rows(upper.subplots(), results["rows"])
    if lower:
        panels = lower[0].subplots(1, len(workloads), squeeze=False)[0]
        for panel, workload in zip(panels, workloads, strict=True):
            _rates(panel, [one for one in results["rates"] if one["workload"] == workload])
            panel.tick_params(axis="y", labelleft=panel is panels[0])
    machine = results["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; "
        f"medians of {results['settings']['rounds']} rounds, bars from least to most",
        fontsize=10,
    )
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return str(target)


def _rows(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Each row as a multiple of its target, where more than 1 is better than asked for."""
    for height, row in enumerate(reversed(rows)):
        better = _beyond(row, row["median"])
        ends = sorted((_beyond(row, row["low"]), _beyond(row, row["high"])))
        panel.barh(height, better, color=OURS if row["met"] else MISSED)
        panel.plot(ends, [height, height], color="black", linewidth=1)
        text = f" {row['median']:.3g} {row['unit']} ({row['target_is']} {row['target']:g})"
        panel.text(max(better, ends[1]), height, text, va="center", fontsize=8)
    panel.axvline(1, color="black", linestyle=":", linewidth=1, zorder=0)
    panel.set_yticks(range(len(rows)), [row["what"] for row in reversed(rows)], fontsize=8)
    panel.margins(x=0.2)
    panel.set_title("whip against its targets (1 = as good as asked for)", fontsize=10)


def _beyond(row: dict[str, Any], value: float) -> float:
    if row["target_is"] == "at least":
        return float(value / row["target"])
    return float(row["target"] / max(value, 1e-9))


def _rates(panel: Any, rates: list[dict[str, Any]]) -> None:
    for height, one in enumerate(reversed(rates)):
        panel.barh(height, one["median"], color=OURS if "whip" in one["contender"] else THEIRS)
        panel.plot([one["low"], one["high"]], [height, height], color="black", linewidth=1)
        panel.text(one["median"], height, f" {one['median']:,.0f}", va="center", fontsize=8)
    panel.set_yticks(range(len(rates)), [one["contender"] for one in reversed(rates)], fontsize=8)
    panel.set_title(f"{rates[0]['workload']}, {rates[0]['unit']}", fontsize=10)
    panel.margins(x=0.25)
    panel.set_xticks([])


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), Path(sys.argv[2])))
