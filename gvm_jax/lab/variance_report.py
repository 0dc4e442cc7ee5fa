"""A variance study as a table, a plot and JSON."""

import dataclasses
import json
import pathlib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from gvm_jax.lab.measures import NORMAL_95, Measured, Ratio
from gvm_jax.lab.pool import Pool
from gvm_jax.lab.study import Row, Study

NOTES = """\
error       E|ĝ - g|² = variance + bias², in units of |g|²; g is the objective's gradient with endless samples
gain, gap   error of equal counts over its own; its own over the oracle's; 95 % intervals over repetitions
bias        with its standard error; "<" = not to be told from 0
cosine      mean cosine of ĝ with g
dropped     prompts of a step without any gradient: no sample, or none accepted
Brier       mean (p̂ - accepted)² of accept rates as believed; {constant:.3f} = all the same, {truth:.3f} = the true ones
tokens      response tokens, pilots included, relative to those of equal counts; gain and gap are at the row's own
The policy is frozen and the pool is the population: a step's estimate is judged, not what training makes of it."""


def write(workdir: pathlib.Path, title: str, pool: Pool, study: Study) -> str:
    """Writes variance.txt, variance.json and the plot; returns the text."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = "\n".join([title, "", table(study), "", notes(study), "", *summary(pool, study)])
    (workdir / "variance.txt").write_text(text + "\n", encoding="utf-8")
    (workdir / "variance.json").write_text(json.dumps(as_json(pool, study), indent=1, allow_nan=False) + "\n")
    plot(workdir / "plots" / "variance.png", title, pool, study)
    return text


def table(study: Study) -> str:
    """A line for each strategy, the least error first, under that of the oracle."""
    header = "strategy rollouts tokens variance bias error gain gap cosine dropped Brier".split()
    lines = [header, ["oracle", *_cells(study.oracle, study.tokens), "", "1", *_rest(study.oracle), ""]]
    for row in sorted(study.rows, key=lambda row: row.measured.error):
        measured = row.measured
        ratios = (_plus_minus(row.gain), _plus_minus(row.gap))
        cells = (*_cells(measured, study.tokens), *ratios, *_rest(measured), f"{measured.brier:.3f}")
        lines.append([_short(row.label), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def notes(study: Study) -> str:
    """What the columns mean."""
    return NOTES.format(constant=study.oracle.brier_constant, truth=study.oracle.brier_truth)


def summary(pool: Pool, study: Study) -> list[str]:
    """What the pool is like and what could be gained, a line each."""
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


def as_json(pool: Pool, study: Study) -> dict:
    """All numbers of a study."""

    def of(measured: Measured) -> dict:
        bias, error = measured.bias
        return {
            "error": measured.error,
            "variance": measured.variance,
            "squared_bias": measured.squared_bias,
            "squared_bias_standard_error": measured.squared_bias_error,
            "bias": bias,
            "bias_standard_error": error,
            "cosine": float(measured.cosines.mean()),
            "tokens": float(measured.tokens.mean()),
            "rollouts": float(measured.rollouts.mean()),
            "dropped": float(1 - measured.useful.mean()),
            "brier": measured.brier,
            "counts": measured.counts.tolist(),
            "useful": measured.useful.tolist(),
        }

    def of_row(row: Row) -> dict:
        ratios = {f.name: list(getattr(row, f.name)) for f in dataclasses.fields(row) if f.type is Ratio}
        return {"label": row.label, "budget": row.budget, **ratios, **of(row.measured)}

    return {
        "tokens": study.tokens,
        "repetitions": len(study.oracle.errors),
        "bound_gain": study.bound_gain,
        "bound_gain_tokens": study.bound_gain_tokens,
        "exact_error": {"uniform": study.uniform_error, "oracle": study.oracle_error},
        "brier": {"constant": study.oracle.brier_constant, "truth": study.oracle.brier_truth},
        "sketch_error": pool.sketch_error,
        "accept_rates": pool.accept_rates.tolist(),
        "response_tokens": np.asarray(pool.response_lengths).mean(1).tolist(),
        "oracle": of(study.oracle),
        "strategies": [of_row(row) for row in study.rows],
    }


def plot(path: pathlib.Path, title: str, pool: Pool, study: Study) -> pathlib.Path:
    """Left: variance and squared bias of each strategy. Right: what the best give to prompts by their accept rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = sorted(study.rows, key=lambda row: -row.measured.error)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 2 + 0.28 * len(rows)), layout="constrained", width_ratios=(3, 2)
    )
    figure.suptitle(title, fontsize=11)
    _plot_errors(left, rows, study)
    _plot_counts(right, rows[::-1], pool, study)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _plot_errors(axes, rows: list[Row], study: Study) -> None:
    labels = [_short(row.label) + _tokens_mark(row, study) for row in rows] + ["oracle"]
    shown = [row.measured for row in rows] + [study.oracle]
    bias = np.array([max(measured.squared_bias, 0.0) for measured in shown])
    error = np.array([measured.error for measured in shown])
    interval = [NORMAL_95 * np.std(measured.errors, ddof=1) / np.sqrt(len(measured.errors)) for measured in shown]
    places = np.arange(len(labels))
    axes.barh(places, error - bias, color="#4477aa", label="variance")
    axes.barh(places, bias, left=error - bias, color="#ddcc77", label="bias²")
    axes.errorbar(error, places, xerr=interval, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    for row, place, end in zip(rows, places, error + interval, strict=False):
        axes.annotate(
            f"{row.gain.value:.2f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(study.oracle.error, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, labels, fontsize=8.5)
    axes.set(xlabel="error of the gradient estimate, E‖ĝ − g‖² / ‖g‖²; numbers: gain over equal counts")
    axes.margins(x=0.1, y=0.02)
    axes.legend(loc="upper right", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_counts(axes, best: list[Row], pool: Pool, study: Study) -> None:
    rates = pool.accept_rates
    chosen = [row for row in best if row.label != "uniform"][:3]
    for row, color, marker in zip(chosen, ("#4477aa", "#ee6677", "#228833"), "o^s", strict=False):
        axes.scatter(rates, row.measured.counts, s=20, marker=marker, color=color, alpha=0.75, linewidths=0,
                     label=_short(row.label))  # fmt: skip
    axes.scatter(rates, study.oracle.counts, marker="x", s=22, color="black", linewidths=1, label="oracle", zorder=3)
    lengths = np.asarray(pool.response_lengths).mean(1)
    axes.axhline(study.tokens / lengths.sum(), color="gray", linewidth=0.8, linestyle="--", label="equal counts")
    axes.set(xlabel="accept rate of the prompt", ylabel="mean samples of the prompt", xlim=(0, 1), yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _tokens_mark(row: Row, study: Study) -> str:
    share = row.measured.tokens.mean() / study.tokens
    return f" ({share:.0%} of the tokens)" if abs(share - 1) > 0.01 else ""


def _cells(measured: Measured, tokens: float) -> tuple[str, ...]:
    bias, error = measured.bias
    return (
        f"{measured.rollouts.mean():.0f}",
        f"{measured.tokens.mean() / tokens:.1%}",
        f"{measured.variance:.4f}",
        f"{bias:.3f} ± {error:.3f}" if bias else f"< {error:.3f}",
        f"{measured.error:.4f}",
    )


def _rest(measured: Measured) -> tuple[str, ...]:
    return f"{measured.cosines.mean():.3f}", f"{1 - measured.useful.mean():.1%}"


def _plus_minus(value: Ratio) -> str:
    return f"{value.value:.2f} ± {(value.high - value.low) / 2:.2f}"


def _short(label: str) -> str:
    return label.replace("allocation.", "")
