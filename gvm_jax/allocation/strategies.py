"""Strategies: what a prompt's estimates say about the variance that one sample of it leaves."""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Strategy(Protocol):
    """A frozen dataclass, so hashable and static under jit; its fields are fields of `config.allocation`."""

    uses_gradient_norm: ClassVar[bool]  # False: no norm is computed in the step

    def coefficients(self, accept_rate: Float[Array, " m"], gradient_norm: Float[Array, " m"]) -> Float[Array, " m"]:
        """a_i ≥ 0 of the program min Σ a_i/n_i, so that prompt i's share, without bounds, is √a_i / Σ √a."""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Equal counts, a_i = 1. A remainder gives one sample more to the first positions of the batch."""

    uses_gradient_norm: ClassVar[bool] = False

    def coefficients(self, accept_rate: Float[Array, " m"], gradient_norm: Float[Array, " m"]) -> Float[Array, " m"]:
        """1 for every prompt."""
        return jnp.ones_like(accept_rate)


@dataclasses.dataclass(frozen=True)
class Gvm:
    """Gradient variance minimisation, arXiv 2505.02391.

    Rejection sampling with n draws at accept rate p has a gradient variance of at most G²/(p·n) (Lemma 1).
    Eq. 7 multiplies it by 1/(1 + α/p^β), which takes samples from prompts that are hardly ever solved:

        a = G² / (p + α / p^(β-1)),   the square of Proposition 1's weight.

    α = 0 is the plain bound.
    """

    uses_gradient_norm: ClassVar[bool] = True
    alpha: float = 1e-3
    beta: float = 2.0

    def coefficients(self, accept_rate: Float[Array, " m"], gradient_norm: Float[Array, " m"]) -> Float[Array, " m"]:
        """The square of Proposition 1's weight; p = 0 gives its limit, which is 0 for β > 1 unless α is 0."""
        p = jnp.maximum(accept_rate, np.finfo(np.float32).tiny)
        damping = self.alpha * p ** (1 - self.beta) if self.alpha else 0.0
        return gradient_norm**2 / (p + damping)


STRATEGIES: dict[str, type[Strategy]] = {"uniform": Uniform, "gvm": Gvm}


def make_strategy(config: Any) -> Strategy:
    """The strategy that `config.strategy` names, its fields read from those of the same name in `config`.

    Args:
        config: the section `config.allocation`.

    Raises:
        ValueError: the name is not in `STRATEGIES`.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"config.allocation.strategy = {config.strategy!r} is unknown; use one of {', '.join(sorted(STRATEGIES))}"
        )
    strategy = STRATEGIES[config.strategy]
    return strategy(**{field.name: getattr(config, field.name) for field in dataclasses.fields(strategy)})
