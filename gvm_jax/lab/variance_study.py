"""The variance study: every strategy at the same number of response tokens, beside equal counts and the oracle."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from gvm_jax.allocation.strategy import Strategy
from gvm_jax.allocation.uniform import Uniform
from gvm_jax.lab import oracle, variants
from gvm_jax.lab.frozen_step import make_step, with_strategy
from gvm_jax.lab.gradient_errors import GradientErrors, Ratio, measure, ratio
from gvm_jax.lab.pool import Pool
from gvm_jax.lab.simulation import TOKEN_TOLERANCE, Scenario, simulate, spend, target_coefficients

TRUE_STATISTICS = "@true_statistics"  # ends an entry whose strategy knows the pool's accept rates, norms and lengths
ORACLE_MOST = 32  # most samples of a prompt in the oracle's counts, as a multiple of the mean count


@dataclasses.dataclass(frozen=True)
class Result:
    """A strategy's errors. Ratios are to equal counts and to the oracle at the tokens that the strategy spent."""

    label: str
    budget: int  # samples it was given
    measured: GradientErrors
    gain: Ratio  # E‖ĝ - g‖² of equal counts over its own
    gap: Ratio  # its own over the oracle's


@dataclasses.dataclass(frozen=True)
class Study:
    """All results, and what they are compared with."""

    results: list[Result]
    tokens: float  # spent by each strategy on average, unless it stops before
    oracle: GradientErrors
    oracle_error: float  # by formula, as the next one; the simulation must find both again
    uniform_error: float
    bound_gain: float  # 1 + CV²(G/√p): most that the bound Σ G²/(p·n) falls, with the pool's p, and G as a run has it
    bound_gain_tokens: float  # the same with equal tokens, not equal samples


def simulate_study(
    config: ConfigDict,
    pool: Pool,
    entries: Sequence[str],
    repetitions: int,
    visits: int,
    show: Callable[[str], None] = lambda _: None,
) -> Study:
    """Simulates each entry at the tokens that equal counts take.

    Args:
      config: of all entries; its objective says which gradient is estimated, its rollouts a prompt are the budget.
      pool: the population.
      entries: as `variants.parse` reads them; `@true_statistics` at the end gives the strategy the pool's own.
      repetitions: simulated steps of each strategy.
      visits: earlier visits of each prompt, from which a strategy has its statistics.
      show: called with a line for each entry.

    Raises:
      ConfigError: an entry that cannot be run.
    """
    m = pool.rewards.shape[0]
    budget = round(m * config.rollouts_per_step / config.prompts_per_step)
    scenarios = {entry: make_scenario(config, entry, m, visits) for entry in entries}
    references = References(config, pool, budget, repetitions)
    _, best = references.at(references.tokens)
    results = []
    for entry, scenario in scenarios.items():
        outcomes, given = spend(scenario, pool, references.tokens, budget, repetitions, config.seed)
        results.append(_result(entry, given, measure(pool, outcomes, references.target), references))
        show(f"simulated {entry}: error {results[-1].measured.error:.4f}")
    return Study(
        results=results,
        tokens=references.tokens,
        oracle=best,
        oracle_error=references.exact_error(references.oracle_counts(references.tokens)),
        uniform_error=references.exact_error(budget // m + (np.arange(m) < budget % m)),
        bound_gain=_bound_gain(pool, np.ones(m)),
        bound_gain_tokens=_bound_gain(pool, references.lengths),
    )


def make_scenario(config: ConfigDict, entry: str, prompts: int, visits: int) -> Scenario:
    """The step and the knowledge that an entry of `study` stands for."""
    known = entry.endswith(TRUE_STATISTICS)
    own = variants.parse(config, entry.removesuffix(TRUE_STATISTICS)).config(config, config.seed)
    return Scenario(make_step(own, prompts), visits=0 if known else visits, with_true_statistics=known)


@dataclasses.dataclass(frozen=True)
class Fixed(Strategy):
    """The same counts in every step."""

    chosen: tuple[int, ...] = ()

    def counts(self, estimates, constraints) -> Int[np.ndarray, " m"]:
        return jnp.array(self.chosen, jnp.int32)


class References:
    """Equal counts and the oracle, at any number of tokens.

    Args:
      config: its objective and its floor of the counts are taken.
      pool: the population.
      budget: samples of equal counts whose tokens are `tokens`.
      repetitions: simulated steps.
    """

    def __init__(self, config: ConfigDict, pool: Pool, budget: int, repetitions: int):
        self._pool, self._budget, self._repetitions, self._seed = pool, budget, repetitions, config.seed
        self._minimum = config.allocation.min_samples
        self._plain = with_strategy(make_step(config, len(pool.rewards)), Uniform())
        self.target: Float[np.ndarray, "m S"] = np.asarray(target_coefficients(self._plain, pool))
        self.lengths: Float[np.ndarray, " m"] = np.asarray(pool.response_lengths).mean(1, dtype=np.float64)
        self.tokens = budget * float(self.lengths.mean())
        self._table = oracle.error_table(self._plain, pool, ORACLE_MOST * -(-budget // len(self.lengths)))
        gradient = self.target.ravel() @ np.asarray(pool.sketches).reshape(self.target.size, -1)
        self._squared_norm = float(np.square(gradient, dtype=np.float64).sum())
        self._known: list[tuple[float, GradientErrors, GradientErrors]] = []

    def oracle_counts(self, tokens: float) -> Int[np.ndarray, " m"]:
        """The counts of `oracle.best_counts`."""
        return oracle.best_counts(self._table, tokens, self.lengths, self._minimum)

    def exact_error(self, counts: Int[np.ndarray, " m"]) -> float:
        """The error of fixed counts by formula, over ‖g‖²."""
        return self._table.error(counts) / self._squared_norm

    def at(self, tokens: float) -> tuple[GradientErrors, GradientErrors]:
        """Equal counts and the oracle's; simulated once for all that spend the same."""
        for spent, equal, best in self._known:
            if abs(spent / tokens - 1) < TOKEN_TOLERANCE:
                return equal, best
        pool, budget, repetitions, seed = self._pool, self._budget, self._repetitions, self._seed
        equal, _ = spend(Scenario(self._plain), pool, tokens, budget, repetitions, seed)
        chosen = tuple(map(int, self.oracle_counts(tokens)))
        scenario = Scenario(with_strategy(self._plain, Fixed(chosen)))
        best = simulate(scenario, pool, jnp.int32(sum(chosen)), 2 * budget, repetitions, seed)
        self._known.append((tokens, *(measure(pool, outcomes, self.target) for outcomes in (equal, best))))
        return self._known[-1][1:]


def _result(label: str, budget: int, measured: GradientErrors, references: References) -> Result:
    spent = float(measured.tokens.mean())
    near = abs(spent / references.tokens - 1) < 2 * TOKEN_TOLERANCE
    equal, best = references.at(references.tokens if near else spent)
    return Result(
        label=label,
        budget=budget,
        measured=measured,
        gain=ratio(equal.errors, measured.errors),
        gap=ratio(measured.errors, best.errors),
    )


def _bound_gain(pool: Pool, costs: Float[np.ndarray, " m"]) -> float:
    """Σa Σc / (Σ√(ac))² of a = G²/p, over the prompts that were ever solved: Σ a/n at equal n over its least."""
    accepted = np.asarray(pool.rewards) > 0
    solved = accepted.any(1)
    squared_norm = np.sum(np.square(pool.norms, dtype=np.float64) * accepted, 1)[solved] / accepted.sum(1)[solved]
    a, c = squared_norm / pool.accept_rates[solved], costs[solved]
    return float(a.sum() * c.sum() / np.sqrt(a * c).sum() ** 2)
