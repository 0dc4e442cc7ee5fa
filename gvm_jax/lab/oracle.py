"""The best fixed counts for a known pool: a bound for all strategies with fixed counts.

Where a sample's coefficient depends on its outcome and on how many of its prompt's n samples are accepted, k, and on
nothing else, α(n, k) for an accepted and β(n, k) for a rejected one, the estimate of prompt i has

    mean      E[αk] μ₁ + E[β(n-k)] μ₀
    variance  E[α²k] σ₁² + E[β²(n-k)] σ₀² + E‖αk μ₁ + β(n-k) μ₀‖² - ‖mean‖²

over k ~ Binomial(n, p), with μ and σ² the mean and the variance (trace) of accepted (1) and of rejected (0) gradients.
The error of all prompts together,

    E‖ĝ - g‖² = Σ_i V_i(n_i) + ‖Σ_i b_i(n_i)‖²,   b_i the bias of prompt i,

couples prompts in the last term only. It is minimised by iteration: that term is linearised about the total bias b,
as ‖b_i‖² + 2 b_i·(b - b_i), each prompt's terms are made convex in n (their lower hull), and the program is solved
exactly.

The error is minimised and not the variance alone: an estimate that weighs accepted samples by 1/k has no variance where
no sample is ever accepted.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import gammaln, xlog1py, xlogy

from gvm_jax.allocation.uniform import Uniform
from gvm_jax.lab.frozen_step import TrainStep, sample_coefficients, with_strategy
from gvm_jax.lab.pool import Pool
from gvm_jax.lab.simulation import target_coefficients

ITERATIONS = 12


@dataclasses.dataclass(frozen=True)
class ErrorTable:
    """Each prompt's variance and bias at n = 0 to `most` samples."""

    variance: Float[np.ndarray, "m n"]  # V_i(n)
    bias: Float[np.ndarray, "m n 2"]  # b_i(n) in multiples of μ₁ and μ₀
    products: Float[np.ndarray, "m 2 m 2"]  # inner products of the μ₁ and μ₀ of all prompts

    def error(self, counts: Int[np.ndarray, " m"]) -> float:
        """E‖ĝ - g‖² at these counts."""
        prompts = np.arange(len(counts))
        bias = self.bias[prompts, counts]
        return float(self.variance[prompts, counts].sum() + np.einsum("ia,iajb,jb", bias, self.products, bias))

    def linearised(self, counts: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m n"]:
        """V_i + ‖b_i‖² + 2 b_i·(b - b_i(n_i)) for all n, with b the total bias at `counts`."""
        prompts = np.arange(len(counts))
        bias = self.bias[prompts, counts]
        own = self.products[prompts, :, prompts]  # [m, 2, 2]
        others = np.einsum("iajb,jb->ia", self.products, bias) - np.einsum("iab,ib->ia", own, bias)
        return (
            self.variance
            + np.einsum("ina,iab,inb->in", self.bias, own, self.bias)
            + 2 * np.einsum("ina,ia->in", self.bias, others)
        )


def best_counts(
    table: ErrorTable, tokens: float, mean_lengths: Float[np.ndarray, " m"], minimum: int
) -> Int[np.ndarray, " m"]:
    """Counts of the least error that are expected to take no more than `tokens`, found by iteration from equal ones.

    The error has several minima: with group baselines one sample of a prompt is none. So higher floors are tried too.

    Args:
      table: of the pool.
      tokens: the budget.
      mean_lengths: mean tokens of a sample of each prompt.
      minimum: floor of all prompts.
    """
    most = table.variance.shape[1] - 1
    equal = np.full(len(mean_lengths), np.clip(int(tokens / mean_lengths.sum()), minimum, most))
    best = equal
    for floor in range(minimum, min(minimum + 2, int(equal[0])) + 1):
        counts = equal
        for _ in range(ITERATIONS):
            found = _spend(convex_gains(table.linearised(counts), floor), tokens, mean_lengths, floor)
            best = min(best, found, key=table.error)
            counts = np.rint((counts + found) / 2).astype(int)  # damped: prompts answer to one another's last counts
    return best


def _spend(
    marginal_gains: Float[np.ndarray, "m n"], tokens: float, costs: Float[np.ndarray, " m"], minimum: int
) -> Int[np.ndarray, " m"]:
    """Counts of the samples with the largest gains per token that fit into `tokens`; none is without a gain."""
    per_token = (marginal_gains[:, minimum:] / costs[:, None]).ravel()
    prompts = np.repeat(np.arange(len(costs)), marginal_gains.shape[1] - minimum)
    order = np.argsort(-per_token, kind="stable")  # a row's gains do not rise, so its samples stay in order
    spent = minimum * costs.sum() + np.cumsum(costs[prompts[order]])
    bought = order[(spent <= tokens * (1 + 1e-9)) & (per_token[order] > 0)]
    return minimum + np.bincount(prompts[bought], minlength=len(costs))


def convex_gains(values: Float[np.ndarray, "m n"], minimum: int) -> Float[np.ndarray, "m n"]:
    """What one more sample lowers the lower convex hull of each row by, from `minimum` on; 0 where the hull rises."""
    marginal_gains = np.zeros_like(values)
    for row, marginal_gain in zip(values, marginal_gains, strict=True):
        corner = minimum
        while corner < len(row) - 1:
            slopes = (row[corner] - row[corner + 1 :]) / np.arange(1, len(row) - corner)
            step = int(np.argmax(slopes))
            marginal_gain[corner : corner + step + 1] = max(slopes[step], 0.0)
            corner += step + 1
    return marginal_gains


def error_table(step: TrainStep, pool: Pool, most: int) -> ErrorTable:
    """Exact variance and bias of each prompt's estimate; of one round, without pilots and with all samples kept.

    Where coefficients depend on other prompts' samples too (`token_mean`), the table is that of prompts alone.
    """
    plain = with_strategy(step, Uniform())
    # A coefficient is a factor for the sample's length, which goes to its gradient, times one for the outcomes.
    even = pool.replace(response_lengths=np.ones_like(pool.response_lengths), max_response=1)
    per_outcome = np.asarray(target_coefficients(plain, even), np.float64)
    whole = np.asarray(target_coefficients(plain, pool), np.float64)
    scale = np.divide(whole, per_outcome, out=np.zeros_like(whole), where=per_outcome != 0)
    gradients = np.asarray(pool.sketches) * scale[..., None]
    accepted = np.asarray(pool.rewards) > 0
    classes = np.stack([accepted, ~accepted], 1)  # [m, 2, S]
    target = np.where(classes, per_outcome[:, None], 0).sum(2)  # in multiples of μ₁ and μ₀
    weights = classes / np.maximum(classes.sum(2, keepdims=True), 1)
    means = weights @ gradients
    variances = (weights * np.square(gradients).sum(2)[:, None]).sum(2) - np.square(means).sum(2)
    products = np.tensordot(means, means, (2, 2))

    odds = _binomial(accepted.mean(1), most)
    alpha, beta = (np.asarray(x, np.float64) for x in _outcome_coefficients(plain, most))
    k = np.arange(most + 1)
    rejected = np.maximum(k[:, None] - k, 0)  # [n, k]
    totals = np.stack([alpha * k, beta * rejected], -1)  # [n, k, 2]
    mean = np.einsum("ink,nka->ina", odds, totals)
    spread = np.einsum("ink,nka->ina", odds, np.stack([alpha**2 * k, beta**2 * rejected], -1))
    second = np.einsum("ink,nka,nkb->inab", odds, totals, totals, optimize=True)
    covariance = second - mean[..., :, None] * mean[..., None, :]
    prompts = np.arange(len(accepted))
    own = products[prompts, :, prompts]
    variance = np.einsum("ina,ia->in", spread, variances) + np.einsum("inab,iab->in", covariance, own)
    return ErrorTable(variance, mean - target[:, None], products)


def _binomial(p: Float[np.ndarray, " m"], most: int) -> Float[np.ndarray, "m n k"]:
    """P(k of n) for n and k = 0 to `most`."""
    n, k = np.arange(most + 1)[:, None], np.arange(most + 1)
    rest = np.maximum(n - k, 0)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(rest + 1)
    logs = ways + xlogy(k, p[:, None, None]) + xlog1py(rest, -p[:, None, None])
    return np.where(k <= n, np.exp(logs), 0.0)


def _outcome_coefficients(step: TrainStep, most: int) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """α(n, k) and β(n, k): what a prompt's accepted and rejected samples weigh with k of n accepted."""
    row, counts = jnp.arange(max(most, 1)), jnp.arange(most + 1)
    one, yes = jnp.ones_like(row), jnp.ones(row.shape, bool)

    def of(n, k):
        group = jnp.where(row < n, 0, step.prompts_per_step)
        coefficients = sample_coefficients(step, group, (row < k).astype(jnp.float32), one, yes, max_response=1)
        return jnp.where(k > 0, coefficients[0], 0), jnp.where(k < n, coefficients[jnp.maximum(n - 1, 0)], 0)

    return jax.jit(lambda: jax.lax.map(lambda n: jax.vmap(lambda k: of(n, jnp.minimum(k, n)))(counts), counts))()
