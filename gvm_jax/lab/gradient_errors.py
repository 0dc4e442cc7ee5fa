"""Error, variance and bias of a strategy's gradient estimates, with intervals.

All squared lengths are in units of ‖g‖², g the gradient to estimate. Repetitions r of R give estimates ĝ_r with mean ḡ:

    error     E‖ĝ - g‖² = variance + bias²
    variance  tr Cov ĝ,      Σ_r ‖ĝ_r - ḡ‖² / (R - 1)
    bias²     ‖E ĝ - g‖²,    Σ_{r≠s} (ĝ_r - g)·(ĝ_s - g) / (R (R - 1)), which no noise of ḡ adds to; it may be below 0

Intervals are normal, at 95 %, over repetitions: they say what another seed may give on this pool, not on another one.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gvm_jax.lab.pool import Pool
from gvm_jax.lab.simulation import Outcomes

NORMAL_95 = 1.96


@dataclasses.dataclass(frozen=True)
class GradientErrors:
    """A strategy's repetitions."""

    error: float  # E‖ĝ - g‖²
    variance: float  # tr Cov ĝ
    squared_bias: float
    squared_bias_error: float  # its standard error
    errors: Float[np.ndarray, " R"]  # ‖ĝ_r - g‖²
    deviations: Float[np.ndarray, " R"]  # ‖ĝ_r - ḡ‖² R/(R - 1)
    cosines: Float[np.ndarray, " R"]  # of ĝ_r with g: what is left of the error where the length does not matter
    counts: Float[np.ndarray, " m"]  # mean samples of each prompt
    tokens: Float[np.ndarray, " R"]
    rollouts: Int[np.ndarray, " R"]
    useful: Float[np.ndarray, " m"]  # how often a prompt had a sample with a gradient
    brier: float  # E(p̂ - accepted)² over prompts, of the estimated accept rates
    brier_constant: float  # the same with the mean accept rate for every prompt
    brier_truth: float  # the same with the true ones, its least value

    @property
    def bias(self) -> tuple[float, float]:
        """‖E ĝ - g‖ and its standard error; (0, what the data cannot tell from 0) where bias² is not above its own."""
        if self.squared_bias <= 2 * self.squared_bias_error:
            return 0.0, float(np.sqrt(2 * self.squared_bias_error))
        root = float(np.sqrt(self.squared_bias))
        return root, self.squared_bias_error / (2 * root)


def measure(pool: Pool, outcomes: Outcomes, target: Float[np.ndarray, "m S"]) -> GradientErrors:
    """Estimates from coefficients and the pool's gradients.

    Args:
      pool: whose gradients.
      outcomes: of `simulate`.
      target: coefficients of g.
    """
    sketches = np.asarray(pool.sketches).reshape(-1, pool.sketches.shape[-1])

    def combine(coefficients) -> np.ndarray:
        return np.asarray(coefficients, np.float32).reshape(-1, len(sketches)) @ sketches

    truth = combine(target)[0].astype(np.float64)
    scale = np.linalg.norm(truth)
    estimates, truth = combine(outcomes.coefficients) / scale, truth / scale
    repetitions = len(estimates)
    mean = estimates.mean(0, dtype=np.float64)
    around, bias = estimates - mean, mean - truth
    deviations = np.einsum("rk,rk->r", around, around, dtype=np.float64) * repetitions / (repetitions - 1)
    lengths = np.linalg.norm(estimates, axis=1)
    p, estimated = pool.accept_rates, np.asarray(outcomes.accept_rates, np.float64)
    noise = np.mean(p * (1 - p))
    errors = np.einsum("rk,rk->r", estimates - truth, estimates - truth, dtype=np.float64)
    return GradientErrors(
        error=float(errors.mean()),
        variance=float(deviations.mean()),
        squared_bias=float(bias @ bias - deviations.mean() / repetitions),
        squared_bias_error=_squared_bias_error(around, bias),
        errors=errors,
        deviations=deviations,
        cosines=estimates @ truth / np.maximum(lengths, np.finfo(np.float32).tiny),
        counts=np.asarray(outcomes.counts).mean(0),
        tokens=np.asarray(outcomes.tokens, np.float64),
        rollouts=np.asarray(outcomes.counts).sum(1),
        useful=np.asarray(outcomes.useful).mean(0),
        brier=float(np.mean((estimated - p) ** 2) + noise),
        brier_constant=float(np.var(p) + noise),
        brier_truth=float(noise),
    )


def _squared_bias_error(around: Float[np.ndarray, "R k"], bias: Float[np.ndarray, " k"]) -> float:
    """Standard error of bias², a U-statistic: Var = 4 bᵀΣb/R + 2 tr(Σ²)/R², Σ the covariance of an estimate.

    The bias found has noise of its own, by which bᵀΣb would be tr(Σ²)/R too large.
    """
    repetitions = len(around)
    squares = np.square(around @ around.T, dtype=np.float64)
    trace = (squares.sum() - squares.trace()) / (repetitions * (repetitions - 1))  # tr(Σ²)
    along = np.maximum(np.var(around @ bias, ddof=1) - trace / repetitions, 0)
    return float(np.sqrt(4 * along / repetitions + 2 * trace / repetitions**2))


class Ratio(NamedTuple):
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(above: Float[np.ndarray, " R"], below: Float[np.ndarray, " R"]) -> Ratio:
    """Ratio of two means, of values that are paired by repetition (the same streams of samples).

    Delta method on the logarithm: Var log(ā/b̄) ≈ Var(a/ā - b/b̄)/R.
    """
    value = float(above.mean() / below.mean())
    error = np.std(above / above.mean() - below / below.mean(), ddof=1) / np.sqrt(len(above))
    factor = float(np.exp(NORMAL_95 * error))
    return Ratio(value, value / factor, value * factor)
