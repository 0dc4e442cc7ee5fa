"""A variance study as a table, a plot and JSON."""

import dataclasses
import json
import pathlib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from gvm_jax.lab import tables
from gvm_jax.lab.gradient_errors import NORMAL_95, GradientErrors
from gvm_jax.lab.pool import Pool
from gvm_jax.lab.variance_study import Result, Study

NOTES = """\
error       E|ĝ - g|² = variance + bias², in units of |g|²; g is the objective's gradient with endless samples
gain, gap   error of equal counts over its own; its own over the oracle's; 95 % intervals over repetitions
bias        with its standard error; "<" = not distinguishable from 0
cosine      mean cosine of ĝ with g
dropped     prompts of a step without any gradient: no sample, or none accepted
Brier       mean (p̂ - accepted)² of estimated accept rates; {constant:.3f} = all the same, {truth:.3f} = the true ones
tokens      response tokens, pilots included, relative to those of equal counts; gain and gap are at the row's own
The policy is frozen and the pool is the population: a step's estimate is judged, not what training makes of it."""
_COLOURS = ("#4477aa", "#ee6677", "#228833")


def write(workdir: pathlib.Path, title: str, pool: Pool, study: Study) -> str:
    """Writes variance.txt, variance.json and the plot; returns the text."""
    workdir.mkdir(parents=True, exist_ok=True)
    notes = NOTES.format(constant=study.oracle.brier_constant, truth=study.oracle.brier_truth)
    text = "\n".join([title, "", table(study), "", notes, "", *summary(pool, study)])
    (workdir / "variance.txt").write_text(text + "\n", encoding="utf-8")
    numbers = dataclasses.asdict(study) | {
        "sketch_error": pool.sketch_error,
        "accept_rates": pool.accept_rates,
        "response_tokens": np.asarray(pool.response_lengths).mean(1),
    }
    text_of_numbers = json.dumps(numbers, default=np.ndarray.tolist, allow_nan=False)
    (workdir / "variance.json").write_text(text_of_numbers + "\n", encoding="utf-8")
    plot(workdir / "plots" / "variance.png", title, pool, study)
    return text


def table(study: Study) -> str:
    """A row for each strategy, the least error first, under that of the oracle."""
    rows = ["strategy rollouts tokens variance bias error gain gap cosine dropped Brier".split()]
    rows.append(_cells("oracle", study.oracle, study.tokens, "", "1", ""))
    for result in sorted(study.results, key=lambda result: result.measured.error):
        ratios = (f"{ratio.value:.2f} ± {(ratio.high - ratio.low) / 2:.2f}" for ratio in (result.gain, result.gap))
        brier = f"{result.measured.brier:.3f}"
        rows.append(_cells(_short(result.label), result.measured, study.tokens, *ratios, brier))
    return tables.markdown(rows)


def _cells(label: str, measured: GradientErrors, tokens: float, gain: str, gap: str, brier: str) -> list[str]:
    bias, error = measured.bias
    return [
        label,
        f"{measured.rollouts.mean():.0f}",
        f"{measured.tokens.mean() / tokens:.1%}",
        f"{measured.variance:.4f}",
        f"{bias:.3f} ± {error:.3f}" if bias else f"< {error:.3f}",
        f"{measured.error:.4f}",
        gain,
        gap,
        f"{measured.cosines.mean():.3f}",
        f"{1 - measured.useful.mean():.1%}",
        brier,
    ]


def summary(pool: Pool, study: Study) -> list[str]:
    """The pool and the possible gain, a line each."""
    p, lengths = pool.accept_rates, np.asarray(pool.response_lengths).mean(1)
    low, middle, high = np.quantile(p, (0.1, 0.5, 0.9))
    return [
        f"accept rates: a tenth of the prompts below {low:.2f}, half below {middle:.2f}, a tenth above {high:.2f}; "
        f"{np.mean(p == 0):.0%} never solved",
        f"mean tokens of a response: {lengths.min():.0f} to {lengths.max():.0f} by prompt; sketches of gradients: "
        f"squared lengths off by {pool.sketch_error:.1%}",
        f"most that the bound G²/(p·n) could fall: {study.bound_gain:.2f} times at equal samples (1 + CV²), "
        f"{study.bound_gain_tokens:.2f} at equal tokens",
        f"error by formula: equal counts {study.uniform_error:.4f}, oracle {study.oracle_error:.4f}, a gain of "
        f"{study.uniform_error / study.oracle_error:.2f}; simulated oracle: {study.oracle.error:.4f}",
    ]


def plot(path: pathlib.Path, title: str, pool: Pool, study: Study) -> None:
    """Left: variance and squared bias of each strategy. Right: counts of the best three by the prompt's accept rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = sorted(study.results, key=lambda result: -result.measured.error)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 2 + 0.28 * len(results)), layout="constrained", width_ratios=(3, 2)
    )
    figure.suptitle(title, fontsize=11)
    _plot_errors(left, results, study)
    _plot_counts(right, [r for r in results[::-1] if r.label != "uniform"][:3], pool, study)
    for axes in (left, right):
        axes.legend(fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_errors(axes, results: list[Result], study: Study) -> None:
    labels, places = [], np.arange(len(results) + 1)
    for result in results:
        share = result.measured.tokens.mean() / study.tokens
        labels.append(_short(result.label) + (f" ({share:.0%} of the tokens)" if abs(share - 1) > 0.01 else ""))
    shown = [result.measured for result in results] + [study.oracle]
    bias = np.array([max(measured.squared_bias, 0.0) for measured in shown])
    error = np.array([measured.error for measured in shown])
    interval = [NORMAL_95 * np.std(measured.errors, ddof=1) / np.sqrt(len(measured.errors)) for measured in shown]
    axes.barh(places, error - bias, color=_COLOURS[0], label="variance")
    axes.barh(places, bias, left=error - bias, color="#ddcc77", label="bias²")
    axes.errorbar(error, places, xerr=interval, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    for result, place, end in zip(results, places, error + interval, strict=False):
        text = f"{result.gain.value:.2f}"
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(study.oracle.error, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [*labels, "oracle"], fontsize=8.5)
    axes.set(xlabel="error of the gradient estimate, E‖ĝ − g‖² / ‖g‖²; numbers: gain over equal counts")
    axes.margins(x=0.1, y=0.02)


def _plot_counts(axes, best: list[Result], pool: Pool, study: Study) -> None:
    for result, color, marker in zip(best, _COLOURS, "o^s", strict=False):
        axes.scatter(
            pool.accept_rates, result.measured.counts, s=20, marker=marker, color=color, alpha=0.75, linewidths=0,
            label=_short(result.label),
        )  # fmt: skip
    axes.scatter(pool.accept_rates, study.oracle.counts, marker="x", s=22, color="black", linewidths=1, label="oracle")
    lengths = np.asarray(pool.response_lengths).mean(1)
    axes.axhline(study.tokens / lengths.sum(), color="gray", linewidth=0.8, linestyle="--", label="equal counts")
    axes.set(xlabel="accept rate of the prompt", ylabel="mean samples of the prompt", xlim=(0, 1), yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _short(label: str) -> str:
    return label.replace("allocation.", "")
