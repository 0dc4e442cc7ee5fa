"""The result as tables, and as an object for a JSON file."""

import dataclasses
import os
import pathlib
import platform
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gvm_jax.benchmark.agreement import ALLOWED
from gvm_jax.benchmark.efficiency import Yardstick
from gvm_jax.benchmark.engine_comparison import Comparison, Spread
from gvm_jax.benchmark.workloads import Workload

COLUMNS = (
    "", "samples", "tokens/s", "seconds", "s/sample", "prefill s", "tokens", "useful", "ratio",
    "norms differ", "updates differ", "log π differs", "MFU", "bandwidth", "run GB", "peak GB", "device GB", "start s",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything measured of a workload."""

    workload: Workload
    settings: dict  # as of `compare`
    about: dict[str, dict]  # as `compare` returns it, with the comparisons
    comparisons: list[Comparison]
    yardstick: Yardstick | None = None  # of an accelerator whose peaks are known

    def describe(self) -> dict:
        return {
            "settings": self.settings,
            "machine": machine(),
            "workload": dataclasses.asdict(self.workload),
            "engines": self.about,
            "comparisons": [
                {
                    **dataclasses.asdict(comparison),
                    "tokens_per_second": {engine: comparison.tokens_per_second(engine) for engine in comparison.runs},
                    "ratio": comparison.ratio and dataclasses.asdict(comparison.ratio),
                    **{
                        share: {engine: self.shares(share, comparison, engine) for engine in comparison.runs}
                        for share in ("mfu", "bandwidth")
                    },
                }
                for comparison in self.comparisons
            ],
        }

    def shares(self, name: str, comparison: Comparison, engine: str) -> list[float]:
        """ "mfu" or "bandwidth" of each run of an engine; [] where it is not known."""
        if not self.yardstick:
            return []
        share = getattr(self.yardstick, name)
        found = [share(self.workload, comparison.counts, run) for run in comparison.runs[engine]]
        return [value for value in found if value is not None]

    def show(self) -> None:
        """Print medians with [least, greatest], without empty columns, and how each engine was configured."""
        console = Console(width=160, highlight=False, markup=False)
        for table in self._tables():
            console.print(table)
        for engine, said in self.about.items():
            versions = ", ".join(f"{package} {version}" for package, version in said["versions"].items())
            console.print(f"{engine}: {said['configured']}; {said['device']} ({versions})", soft_wrap=True)

    def _tables(self) -> list[Table]:
        if self.workload.rewards:  # agreement is not timed
            return [agreement_table(comparison) for comparison in self.comparisons if comparison.differences]
        sections = [[self.row(comparison, engine) for engine in comparison.runs] for comparison in self.comparisons]
        shown = [name for name in COLUMNS if any(cells.get(name) for rows in sections for cells in rows)]
        table = Table(*shown)
        for rows in sections:
            for cells in rows:
                table.add_row(*(cells.get(name, "") for name in shown))
            table.add_section()
        return [table, *(phase_table(comparison) for comparison in self.comparisons if phases_of(comparison))]

    def row(self, comparison: Comparison, engine: str) -> dict[str, str]:
        runs, counts, about = comparison.runs[engine], comparison.counts, self.about[engine]
        cells = {
            "": engine,
            "samples": str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}",
            "tokens/s": _show(comparison.tokens_per_second(engine), 1),
            "seconds": _show([run["seconds"] for run in runs], 2),
            "s/sample": _show([run["seconds"] / len(run["norms"]) for run in runs if "norms" in run], 2),
            "prefill s": _show([run["prefill_seconds"] for run in runs if run["prefill_seconds"] is not None], 2),
            "tokens": _show([sum(run["lengths"]) for run in runs], 0),
            "useful": _show([run["packing_efficiency"] for run in runs if "packing_efficiency" in run], 2),
            "MFU": _show(self.shares("mfu", comparison, engine), 3),
            "bandwidth": _show(self.shares("bandwidth", comparison, engine), 3),
            "run GB": f"{max(run['peak_bytes'] for run in runs) / 1e9:.1f}",
            "peak GB": f"{about['peak_bytes'] / 1e9:.1f}",
            "device GB": f"{max(run['device_bytes'] for run in runs) / 1e9:.1f}" if runs[0]["device_bytes"] else "",
            "start s": f"{about['load_seconds']:.0f} + {about['warm_up_seconds']:.0f}",
        }
        if engine != next(iter(comparison.runs)):
            cells["ratio"] = _show_spread(comparison.ratio, 2)
            cells |= {name: f"{difference:.1e}" for name, difference in comparison.differences.items()}
        return cells


def machine() -> dict:
    """The CPU's model and number of cores, and the system."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "system": platform.platform()}


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
            known = [run for run in runs if phase in run["phases"]]
            share = 100 * Spread.of([run["phases"][phase] / run["seconds"] for run in known]).median if known else 0
            cells.append(f"{_show([run['phases'][phase] for run in known], 2)} ({share:.1f} %)" if known else "")
        table.add_row(engine, *cells, _show([run["accepted"] for run in runs], 0))
    return table


def agreement_table(comparison: Comparison) -> Table:
    """The differences between two engines, and whether each is more than float32 explains."""
    a, b = comparison.runs
    table = Table(f"a = {a}, b = {b}", "difference", f"at most {ALLOWED:g}")
    for name, difference in comparison.differences.items():
        table.add_row(name, f"{difference:.1e}", "yes" if difference <= ALLOWED else "no")
    return table


def _show(values: Sequence[float], digits: int) -> str:
    return _show_spread(Spread.of(values), digits) if values else ""


def _show_spread(spread: Spread, digits: int) -> str:
    median, least, greatest = (f"{value:,.{digits}f}" for value in dataclasses.astuple(spread))
    return median if least == greatest else f"{median} [{least}, {greatest}]"
