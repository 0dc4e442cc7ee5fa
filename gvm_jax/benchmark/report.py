"""The result as a table, and as an object for a JSON file."""

import dataclasses
import os
import pathlib
import platform
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gvm_jax.benchmark.agreement import ALLOWED
from gvm_jax.benchmark.comparison import Comparison, Spread
from gvm_jax.benchmark.efficiency import Yardstick
from gvm_jax.benchmark.workload import Workload

COLUMNS = (
    "", "samples", "tokens/s", "seconds", "s/sample", "prefill s", "prefill tokens", "tokens", "useful", "ratio",
    "norms differ", "updates differ", "log π differs", "MFU", "bandwidth", "run GB", "peak GB", "device GB", "start s",
)  # fmt: skip


def machine() -> dict:
    """The CPU's model and number of cores, and the system."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}


def describe(
    workload: Workload, about: dict, comparisons: Sequence[Comparison], yardstick: Yardstick | None = None
) -> dict:
    """Everything measured, for a JSON file; arguments as for `show`."""
    return {
        "machine": machine(),
        "workload": dataclasses.asdict(workload),
        "engines": about,
        "comparisons": [
            {
                "counts": comparison.counts,
                "runs": comparison.runs,
                "tokens_per_second": {engine: comparison.tokens_per_second(engine) for engine in comparison.runs},
                "ratio": comparison.ratio and dataclasses.asdict(comparison.ratio),
                "norm_difference": comparison.norm_difference,
                "update_difference": comparison.update_difference,
                "logprob_difference": comparison.logprob_difference,
                "agreement": comparison.agreement,
                **efficiencies(workload, comparison, yardstick),
            }
            for comparison in comparisons
        ],
    }


def efficiencies(workload: Workload, comparison: Comparison, yardstick: Yardstick | None) -> dict[str, dict]:
    """Of each run of each engine "mfu" and "bandwidth", shares of the device's peaks; empty lists without them."""
    found = {"mfu": {}, "bandwidth": {}}
    for engine, runs in comparison.runs.items():
        measured = runs if yardstick else []
        found["mfu"][engine] = [yardstick.mfu(workload, comparison.counts, run) for run in measured]
        shares = [yardstick.bandwidth(engine, workload, comparison.counts, run) for run in measured]
        found["bandwidth"][engine] = [share for share in shares if share is not None]
    return found


def show(
    workload: Workload,
    about: dict[str, dict],
    comparisons: Sequence[Comparison],
    yardstick: Yardstick | None = None,
) -> None:
    """Print medians with [least, greatest], without empty columns, and how each engine was configured.

    Args:
      workload: that was run.
      about: each engine, as `compare` returns it.
      comparisons: to show.
      yardstick: of a device whose peaks are known.
    """
    sections = [
        [
            row(comparison, engine, about[engine], efficiencies(workload, comparison, yardstick))
            for engine in comparison.runs
        ]
        for comparison in comparisons
    ]
    shown = [i for i in range(len(COLUMNS)) if any(cells[i] for rows in sections for cells in rows)]
    console = Console(width=160, highlight=False, markup=False)
    table = Table(*(COLUMNS[i] for i in shown))
    for rows in sections:
        for cells in rows:
            table.add_row(*(cells[i] for i in shown))
        table.add_section()
    phased = [phase_table(comparison) for comparison in comparisons if phases_of(comparison)]
    agreements = [agreement_table(comparison) for comparison in comparisons if comparison.agreement]
    for shown_table in agreements or [table, *phased]:  # agreement is not timed
        console.print(shown_table)
    for engine, said in about.items():
        versions = ", ".join(f"{package} {version}" for package, version in said["versions"].items())
        console.print(f"{engine}: {said['configured']}; {said['device']} ({versions})", soft_wrap=True)


def phases_of(comparison: Comparison) -> list[str]:
    """Names of the phases that engines timed, in their order."""
    return list(
        dict.fromkeys(phase for runs in comparison.runs.values() for run in runs for phase in run.get("phases", {}))
    )


def phase_table(comparison: Comparison) -> Table:
    """Seconds of each phase of a step, and shares of the whole."""
    phases = phases_of(comparison)
    table = Table("seconds (share) by phase", *phases, "accepted")
    for engine, runs in comparison.runs.items():
        cells = []
        for phase in phases:
            known = [
                (run["phases"][phase], run["phases"][phase] / run["seconds"]) for run in runs if phase in run["phases"]
            ]
            seconds, shares = zip(*known, strict=True) if known else ((), ())
            cells.append(f"{_show(seconds, 2)} ({100 * Spread.of(shares).median:.1f} %)" if known else "")
        table.add_row(engine, *cells, _show([run["accepted"] for run in runs], 0))
    return table


def agreement_table(comparison: Comparison) -> Table:
    """What differs between two engines, and whether by more than float32 explains."""
    a, b = comparison.runs
    table = Table(f"a = {a}, b = {b}", "difference", f"at most {ALLOWED:g}")
    for name, difference in comparison.agreement.items():
        table.add_row(name, f"{difference:.1e}", "yes" if difference <= ALLOWED else "no")
    return table


def row(comparison: Comparison, engine: str, about: dict, shares: dict[str, dict]) -> list[str]:
    """The cells of `COLUMNS` for an engine of a comparison; what it does not know stays empty."""
    runs, counts = comparison.runs[engine], comparison.counts
    prefill_seconds = [run["prefill_seconds"] for run in runs if run["prefill_seconds"] is not None]
    prefill_tokens = [run["stats"]["prefill_tokens"] for run in runs if "prefill_tokens" in run.get("stats", {})]
    is_peer, difference = engine != next(iter(comparison.runs)), comparison.norm_difference
    measured = [run["seconds"] / len(run["norms"]) for run in runs if "norms" in run]
    return [
        engine,
        str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}",
        _show(comparison.tokens_per_second(engine), 1),
        _show([run["seconds"] for run in runs], 2),
        _show(measured, 2),
        _show(prefill_seconds, 2),
        _show(prefill_tokens, 0),
        _show([sum(run["lengths"]) for run in runs], 0),
        _show([run["packing_efficiency"] for run in runs if "packing_efficiency" in run], 2),
        _show_spread(comparison.ratio, 2) if is_peer else "",
        f"{difference:.1e}" if is_peer and difference is not None else "",
        f"{comparison.update_difference:.1e}" if is_peer and comparison.update_difference is not None else "",
        f"{comparison.logprob_difference:.1e}" if is_peer and comparison.logprob_difference is not None else "",
        _show(shares["mfu"][engine], 3),
        _show(shares["bandwidth"][engine], 3),
        f"{max(run['peak_bytes'] for run in runs) / 1e9:.1f}",
        f"{about['peak_bytes'] / 1e9:.1f}",
        f"{max(run['device_bytes'] for run in runs) / 1e9:.1f}" if runs[0]["device_bytes"] else "",
        f"{about['load_seconds']:.0f} + {about['warm_up_seconds']:.0f}",
    ]


def _show(values: Sequence[float], digits: int) -> str:
    return _show_spread(Spread.of(values), digits) if values else ""


def _show_spread(spread: Spread, digits: int) -> str:
    median, least, greatest = (f"{value:,.{digits}f}" for value in (spread.median, spread.least, spread.greatest))
    return median if least == greatest else f"{median} [{least}, {greatest}]"
