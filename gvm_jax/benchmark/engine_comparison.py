"""Runs of engines in turn, and how they compare."""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence

from gvm_jax.benchmark.agreement import differences
from gvm_jax.benchmark.engine_process import BenchmarkError, EngineProcess
from gvm_jax.benchmark.workloads import Workload


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some values."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one engine, or of two that took turns."""

    counts: list[int]  # samples of each prompt
    runs: dict[str, list[dict]]  # engine -> the results of its runs (`Engine.run`)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)  # of two engines' results, by name

    def tokens_per_second(self, engine: str) -> list[float]:
        """Response tokens, stop tokens included, by the seconds of the whole call, prefill included; a value a run."""
        return [sum(run["lengths"]) / run["seconds"] for run in self.runs[engine]]

    @property
    def ratio(self) -> Spread | None:
        """The first engine's tokens per second over the second's, pair by pair of successive runs; None of one."""
        if len(self.runs) == 1:
            return None
        ours, theirs = map(self.tokens_per_second, self.runs)
        return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def alternate(engines: Sequence[EngineProcess], workload: Workload, counts: list[int], repeats: int) -> Comparison:
    """`repeats` runs of each engine, taking turns (ABAB...), each turn with a seed of its own. Progress goes to stderr.

    Raises:
      BenchmarkError: an engine failed, or its responses are not those that were asked for.
    """
    runs: dict[str, list[dict]] = {engine.name: [] for engine in engines}
    for repeat in range(repeats):
        for engine in engines:
            result = engine.run(counts, seed=repeat + 1)
            try:
                workload.check(result["lengths"], counts)
            except ValueError as error:
                raise BenchmarkError(f"engine {engine.name}: {error}") from error
            runs[engine.name].append(result)
            print(f"{engine.name}: run {repeat + 1} of {repeats}, {result['seconds']:.1f} s", file=sys.stderr)
    found = differences(*runs.values()) if len(runs) == 2 else {}  # now: engines leave files in a temporary folder
    return Comparison(counts, runs, found)


def compare(
    workload: Workload, engines: dict[str, tuple[str, str]], repeats: int, settings: dict
) -> tuple[dict[str, dict], list[Comparison]]:
    """Compares the first engine with each of the others; at most two are in memory at a time.

    Args:
      workload: the same for all.
      engines: name -> (task, interpreter), as of `EngineProcess`.
      repeats: runs of each in a comparison.
      settings: what engines read beside the workload: "model", "dtype", "slots", "micro_batch" and "fields".

    Returns:
      About each engine: how it was configured, its device, versions, seconds to load and to warm up, "peak_bytes".
      Comparisons of the first engine with each other one (or with none), for each of the workload's cases.

    Raises:
      BenchmarkError: an engine failed.
    """
    about, comparisons = {}, []
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "workload.json")
        workload.write(file, {**settings, "folder": folder})
        first, *peers = engines
        with EngineProcess(first, *engines[first], file) as ours:
            for peer in peers or [None]:
                with EngineProcess(peer, *engines[peer], file) if peer else contextlib.nullcontext() as theirs:
                    pair = [ours, theirs] if peer else [ours]
                    _check_devices(pair)
                    comparisons += [alternate(pair, workload, counts, repeats) for counts in workload.cases]
                    about |= {engine.name: {**engine.about, "peak_bytes": engine.peak_bytes} for engine in pair}
    return about, comparisons


def _check_devices(engines: Sequence[EngineProcess]) -> None:
    kinds = {engine.name: engine.about["device"] for engine in engines}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{name} computes on {kind}" for name, kind in kinds.items())
        raise BenchmarkError(
            f"{found}: install the build for the accelerator in each one's environment, or hide it from both "
            "(CUDA_VISIBLE_DEVICES= and JAX_PLATFORMS=cpu)"
        )
