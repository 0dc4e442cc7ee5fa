"""The variance study: every strategy at the same number of response tokens, beside equal counts and the oracle."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.strategy import Strategy
from gvm_jax.allocation.uniform import Uniform
from gvm_jax.lab import oracle, variants
from gvm_jax.lab.measures import Measured, Ratio, measure, ratio
from gvm_jax.lab.pool import Pool
from gvm_jax.lab.simulation import TOKEN_TOLERANCE, Scenario, simulate, spend, target_coefficients
from gvm_jax.training.objectives import Objective
from gvm_jax.training.step import TrainStep

TOLD = "@told"  # ends an entry whose strategy knows the pool's accept rates, norms and lengths
ORACLE_MOST = 32  # the oracle gives a prompt at most so many times the mean count


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """What is simulated."""

    repetitions: int = 300
    visits: int = 4  # of every prompt before the step, by the same policy and strategy
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """A strategy's result; ratios are to equal counts and to the oracle at the tokens that it spent."""

    label: str
    budget: int  # samples it was given
    measured: Measured
    gain: Ratio  # E‖ĝ - g‖² of equal counts over its own
    gap: Ratio  # its own over the oracle's
    variance_gain: Ratio  # the same of variances
    variance_gap: Ratio


@dataclasses.dataclass(frozen=True)
class Study:
    """All results, and what they are to be seen beside."""

    rows: list[Row]
    tokens: float  # that every row spends on average, unless a strategy stops before
    oracle: Measured
    oracle_error: float  # exact, as is
    uniform_error: float  # that of equal counts; the simulation must find both again
    bound_gain: float  # 1 + CV²(G/√p): most that the bound Σ G²/(p·n) falls, with the pool's p, and G as a run has it
    bound_gain_tokens: float  # the same with equal tokens, not equal samples


def run_study(
    step: TrainStep,
    pool: Pool,
    config: ConfigDict,
    entries: Sequence[str],
    settings: StudySettings,
    progress: Callable[[str], None],
) -> Study:
    """Simulates each entry at the tokens that equal counts take.

    Args:
      step: of any run with the study's model; its allocation, objective, pilots and prompts are replaced.
      pool: the population.
      config: that all entries share; its objective says which gradient is to be estimated, and its rollouts for each
        prompt are the budget.
      entries: as `variants.parse` reads them; `@told` at the end hands the strategy the truth.
      settings: repetitions, visits, seed.
      progress: called with a line for each entry.

    Raises:
      ConfigError: an entry that cannot be run.
    """
    m = pool.rewards.shape[0]
    budget = round(m * config.rollouts_per_step / config.prompts_per_step)
    scenarios = {entry: make_scenario(step, config, entry, m, settings.visits) for entry in entries}
    plain = with_strategy(dataclasses.replace(replace_algorithm(step, config, m), pilot_samples=0), Uniform())
    yardstick = Yardstick(plain, pool, budget, config.allocation.min_samples, settings)
    _, best = yardstick.at(yardstick.tokens)
    rows = []
    for entry, scenario in scenarios.items():
        outcomes, given = spend(scenario, pool, yardstick.tokens, budget, settings.repetitions, settings.seed)
        rows.append(_row(entry, given, measure(pool, outcomes, yardstick.target), yardstick))
        progress(f"simulated {entry}: error {rows[-1].measured.error:.4f}")
    return Study(
        rows=rows,
        tokens=yardstick.tokens,
        oracle=best,
        oracle_error=yardstick.table.error(yardstick.oracle_counts(yardstick.tokens)) / yardstick.unit,
        uniform_error=yardstick.table.error(budget // m + (np.arange(m) < budget % m)) / yardstick.unit,
        bound_gain=_bound_gain(pool, np.ones(m)),
        bound_gain_tokens=_bound_gain(pool, yardstick.lengths),
    )


def make_scenario(step: TrainStep, config: ConfigDict, entry: str, prompts: int, visits: int) -> Scenario:
    """What an entry of `run_study` means."""
    told = entry.endswith(TOLD)
    own = variants.parse(config, entry.removesuffix(TOLD)).config(config, config.seed)
    return Scenario(replace_algorithm(step, own, prompts), visits=0 if told else visits, told=told)


def replace_algorithm(step: TrainStep, config: ConfigDict, prompts: int) -> TrainStep:
    """The step with a config's objective and allocation."""
    return dataclasses.replace(
        step,
        objective=Objective.from_config(config.objective, corrected=False),
        allocator=Allocator.from_config(config.allocation),
        prompts_per_step=prompts,
        pilot_samples=config.allocation.pilot_samples if config.allocation.mode == "pilot" else 0,
        pilot_weight=config.allocation.pilot_weight,
    )


def with_strategy(step: TrainStep, strategy: Strategy) -> TrainStep:
    """The step with another strategy and all else as it is."""
    return dataclasses.replace(step, allocator=dataclasses.replace(step.allocator, strategy=strategy))


@dataclasses.dataclass(frozen=True)
class Fixed(Strategy):
    """These counts, whatever is estimates."""

    chosen: tuple[int, ...] = ()

    def counts(self, estimates, constraints) -> Int[np.ndarray, " m"]:
        """The counts."""
        return jnp.array(self.chosen, jnp.int32)


class Yardstick:
    """Equal counts and the oracle, at any number of tokens.

    Args:
      plain: a step with equal counts, for its objective.
      pool: the population.
      budget: samples of equal counts whose tokens are `tokens`.
      minimum: the oracle's floor.
      settings: repetitions and seed.
    """

    def __init__(self, plain: TrainStep, pool: Pool, budget: int, minimum: int, settings: StudySettings):
        self.pool, self._plain, self._budget, self._minimum, self._settings = pool, plain, budget, minimum, settings
        self.target: Float[np.ndarray, "m S"] = np.asarray(target_coefficients(plain, pool))
        self.lengths: Float[np.ndarray, " m"] = np.asarray(pool.response_lengths).mean(1, dtype=np.float64)
        self.tokens = budget * float(self.lengths.mean())
        self.table = oracle.error_table(plain, pool, ORACLE_MOST * -(-budget // len(self.lengths)))
        whole = self.target.ravel() @ np.asarray(pool.sketches).reshape(self.target.size, -1)
        self.unit = float(np.square(whole, dtype=np.float64).sum())  # ‖g‖²
        self._known: list[tuple[float, Measured, Measured]] = []

    def oracle_counts(self, tokens: float) -> Int[np.ndarray, " m"]:
        """The counts of `oracle.best_counts`."""
        return oracle.best_counts(self.table, tokens, self.lengths, self._minimum)

    def at(self, tokens: float) -> tuple[Measured, Measured]:
        """Equal counts and the oracle's; simulated once for all that spend the same."""
        for spent, equal, best in self._known:
            if abs(spent / tokens - 1) < TOKEN_TOLERANCE:
                return equal, best
        repetitions, seed, budget = self._settings.repetitions, self._settings.seed, self._budget
        equal, _ = spend(Scenario(self._plain), self.pool, tokens, budget, repetitions, seed)
        chosen = Fixed(tuple(map(int, self.oracle_counts(tokens))))
        scenario = Scenario(with_strategy(self._plain, chosen))
        best = simulate(scenario, self.pool, jnp.int32(sum(chosen.chosen)), 2 * budget, repetitions, seed)
        self._known.append((tokens, *(measure(self.pool, outcomes, self.target) for outcomes in (equal, best))))
        return self._known[-1][1:]


def _row(label: str, budget: int, measured: Measured, yardstick: Yardstick) -> Row:
    spent = float(measured.tokens.mean())
    near = abs(spent / yardstick.tokens - 1) < 2 * TOKEN_TOLERANCE
    equal, best = yardstick.at(yardstick.tokens if near else spent)
    return Row(
        label=label,
        budget=budget,
        measured=measured,
        gain=ratio(equal.errors, measured.errors),
        gap=ratio(measured.errors, best.errors),
        variance_gain=ratio(equal.deviations, measured.deviations),
        variance_gap=ratio(measured.deviations, best.deviations),
    )


def _bound_gain(pool: Pool, costs: Float[np.ndarray, " m"]) -> float:
    """Σa Σc / (Σ√(ac))² of a = G²/p, over the prompts that were ever solved: Σ a/n at equal n over its least."""
    accepted = np.asarray(pool.rewards) > 0
    solved = accepted.any(1)
    squared_norm = np.sum(np.square(pool.norms, dtype=np.float64) * accepted, 1)[solved] / accepted.sum(1)[solved]
    a, c = squared_norm / pool.accept_rates[solved], costs[solved]
    return float(a.sum() * c.sum() / np.sqrt(a * c).sum() ** 2)
