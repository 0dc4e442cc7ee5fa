"""Runs of engines in turn, and what they say of one another."""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence

from gvm_jax.benchmark.agreement import differences, norm_difference
from gvm_jax.benchmark.process import BenchmarkError, EngineProcess
from gvm_jax.benchmark.workload import Workload


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some values."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one engine, or of two that took turns."""

    counts: list[int]  # samples of each prompt
    runs: dict[str, list[dict]]  # engine -> what its process said of each run
    agreement: dict[str, float] | None = (
        None  # what differs -> by how much, of the workload `agreement` and two engines
    )

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

    @property
    def norm_difference(self) -> float | None:
        """The largest |ours / theirs - 1| of the gradient norms; None of one engine, or where samples were drawn."""
        norms = [runs[0].get("norms") for runs in self.runs.values()]
        if len(norms) == 1 or None in norms:
            return None
        return norm_difference(*norms)

    @property
    def logprob_difference(self) -> float | None:
        """Mean |ours - theirs| of the tokens' log π, in nats; None of one engine, or where none were returned."""
        scored = [runs[0].get("logprobs") for runs in self.runs.values()]
        if len(scored) == 1 or None in scored:
            return None
        ours, theirs = ([x for row in rows for x in row] for rows in scored)
        return statistics.fmean(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    @property
    def update_difference(self) -> float | None:
        """The largest |ours / theirs - 1| of the losses and gradient norms of all updates; None of one engine.

        From the second update on it also holds what the engines' optimizers made of the parameters.
        """
        if len(self.runs) == 1 or any("loss" not in run for runs in self.runs.values() for run in runs):
            return None
        pairs = list(zip(*self.runs.values(), strict=True))
        return max(abs(a[name] / b[name] - 1) for a, b in pairs for name in ("loss", "gradient_norm"))


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
    pair = [results[0] for results in runs.values()]
    agreed = differences(*pair) if len(pair) == 2 and all("tensors" in result for result in pair) else None
    return Comparison(counts, runs, agreed)


def compare(
    workload: Workload,
    cases: Sequence[list[int]],
    engines: dict[str, tuple[pathlib.Path, str]],
    repeats: int,
    settings: dict,
) -> tuple[dict[str, dict], list[Comparison]]:
    """Compares the first engine with each of the others; at most two are in memory at a time.

    Args:
      workload: the same for all.
      cases: counts to compare them with, one after the other.
      engines: name -> (script, interpreter).
      repeats: runs of each in a comparison.
      settings: what engines read beside the workload: "model", "dtype", "slots", "rollout" and "norms".

    Returns:
      About each engine: how it was configured, its device, versions, seconds to load and to warm up, "peak_bytes".
      Comparisons of the first engine with each other one (or with none), case by case.

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
                    comparisons += [alternate(pair, workload, counts, repeats) for counts in cases]
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
