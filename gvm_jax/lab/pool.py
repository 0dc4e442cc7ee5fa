"""The population of a variance study: samples of some prompts from a frozen policy, with a gradient each.

The pool's own frequencies and means are the truth: `simulation.py` draws from it with replacement, so accept rates and
the gradient to estimate are known exactly.

The gradient of a sample is that of its token-summed log-probability, g = ∇ Σ_t log π_T(y_t). It is kept as a count
sketch (Charikar, Chen and Farach-Colton, 2002; inner products: arXiv 0902.2206): coordinates are multiplied by random
signs and dealt at random into k sums. Sketches add up as gradients do. Their inner products are unbiased, with variance
at most (‖x‖²‖y‖² + (x·y)²)/k, so the trace of a covariance Σ is off by √(2/k) at most, relative, and by √(2/(k·r)) at
an effective rank r = (tr Σ)²/‖Σ‖². All comparisons share the sketch. With k = 0 gradients are kept whole.
"""

import dataclasses
import functools
import io
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.config import ConfigError
from gvm_jax.lab.frozen_step import FrozenPolicy
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.cpu import compiler_options
from gvm_jax.runtime.files import claim, write_atomically
from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms


@dataclasses.dataclass(frozen=True)
class PoolSettings:
    """What to measure."""

    prompts: int  # m
    samples: int  # S of each prompt
    sketch: int = 4096  # k, numbers that a gradient is kept as; 0 = all of them
    parameters: str = "."  # regular expression searched in the parameters' dotted paths
    block: int = 8  # prompts between two files
    chunk: int = 16  # gradients held at once


@struct.dataclass
class Pool:
    """m prompts with S samples each; equal odds for all samples of a prompt."""

    rewards: Float[Array, "m S"]
    stopped: Bool[Array, "m S"]  # ended by a stop token
    response_lengths: Int[Array, "m S"]
    norms: Float[Array, "m S"]  # ‖gradient‖ as the run measures it, by `config.gradient_norms`
    squared_norms: Float[Array, "m S"]  # ‖g‖², exact
    sketches: Float[Array, "m S k"]  # g
    max_response: int = struct.field(pytree_node=False)  # T, the length limit

    @property
    def accept_rates(self) -> Float[np.ndarray, " m"]:
        """p of each prompt."""
        return np.mean(np.asarray(self.rewards) > 0, axis=1)

    @property
    def sketch_error(self) -> float:
        """Root mean squared relative error of the sketched ‖g‖² over all samples."""
        sketched = np.einsum("isk,isk->is", self.sketches, self.sketches, dtype=np.float64)
        return float(np.sqrt(np.mean((sketched / np.maximum(self.squared_norms, 1e-30) - 1) ** 2)))


def collect(
    policy: FrozenPolicy, settings: PoolSettings, folder: pathlib.Path, progress: Callable[[str], None]
) -> Pool:
    """Samples, grades and measures a policy's next prompts; goes on where an earlier call was stopped.

    Args:
      policy: whose prompts and samples.
      settings: what to measure.
      folder: a file for each block of prompts; made here.
      progress: called with a line after each block.

    Raises:
      ConfigError: the folder holds another pool, the prompts are not there, or `settings.parameters` chooses nothing.
    """
    prompt_ids, config = policy.first_prompts(settings.prompts), policy.config
    claim(folder / "pool.json", policy.identity() | {"pool": dataclasses.asdict(settings)}, "this pool is")
    sketch = CountSketch.random(num_coordinates(policy.params, settings.parameters), settings.sketch, config.seed)
    norm_settings = GradientNormSettings.from_config(config.gradient_norms)
    temperature, logprob_chunk = config.rollout.temperature, config.optimizer.logprob_chunk

    @functools.partial(jax.jit, compiler_options=compiler_options(policy.mesh))
    def measure(params: Params, sketch: CountSketch, rollouts: Rollouts):
        wanted = jnp.ones(rollouts.group.shape, bool)
        norms = per_sample_gradient_norms(
            policy.model, params, rollouts, wanted, norm_settings, temperature, logprob_chunk
        )
        return norms, *sketched_gradients(policy.model, params, sketch, rollouts, settings, temperature, logprob_chunk)

    blocks = []
    for begin in range(0, settings.prompts, settings.block):
        path = folder / f"{begin:05d}.npz"
        ids = prompt_ids[begin : begin + settings.block]
        if not path.exists():
            rollouts, rewards = policy.sample(ids, settings.samples)
            norms, squared_norms, sketches = measure(policy.params, sketch, rollouts)
            rows = {
                "rewards": rewards, "stopped": rollouts.stopped, "response_lengths": rollouts.response_lengths,
                "norms": norms, "squared_norms": squared_norms, "sketches": sketches,
            }  # fmt: skip
            file = io.BytesIO()
            np.savez(file, **{name: np.asarray(x).reshape(len(ids), -1, *x.shape[1:]) for name, x in rows.items()})
            write_atomically(path, file.getvalue())
        with np.load(path) as saved:
            blocks.append(dict(saved))
        accepted = np.mean([np.mean(block["rewards"] > 0) for block in blocks])
        progress(
            f"pool      {begin + len(ids)}/{settings.prompts} prompts x {settings.samples} samples, "
            f"accept rate {accepted:.3f}"
        )
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Pool(**arrays, max_response=config.rollout.max_new_tokens)


def num_coordinates(params: Params, pattern: str) -> int:
    """How many numbers a gradient of the chosen parameters has; ConfigError if the pattern is found in no path."""
    leaves, chosen = _choose(params, pattern)
    return sum(leaves[i].size for i in chosen)


def _choose(params: Params, pattern: str) -> tuple[list[Array], list[int]]:
    """All leaves, and the places of the chosen ones."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)
    names = [".".join(str(entry.key) for entry in path) for path in paths]
    chosen = [i for i, name in enumerate(names) if re.search(pattern, name)]
    if not chosen:
        raise ConfigError(f"--parameters={pattern!r}: found in no parameter's path; the paths are {', '.join(names)}")
    return list(leaves), chosen


def sketched_gradients(
    model: Model,
    params: Params,
    sketch: "CountSketch",
    rollouts: Rollouts,
    settings: PoolSettings,
    temperature: float,
    logprob_chunk: int,
) -> tuple[Float[Array, " N"], Float[Array, "N k"]]:
    """‖g‖² and the sketch of g of each row, with g = ∇ Σ_t log π_T(y_t) for the chosen parameters.

    Args:
      model: the network.
      params: of it.
      sketch: of as many numbers as `num_coordinates` gives.
      rollouts: N rows.
      settings: which parameters, and how many gradients to hold at once.
      temperature: of the sampling policy.
      logprob_chunk: as for `response_logprobs`.
    """
    leaves, chosen = _choose(params, settings.parameters)

    def measure(rollout: Rollouts) -> tuple[Float[Array, ""], Float[Array, " k"]]:
        def log_likelihood(values):
            replaced = dict(zip(chosen, values, strict=True))
            bound = jax.tree.unflatten(jax.tree.structure(params), [replaced.get(i, x) for i, x in enumerate(leaves)])
            one = jax.tree.map(lambda x: x[None], rollout)
            return response_logprobs(
                model.bind(bound), one.tokens, one.prompt_lengths, one.response_lengths, one.max_response, temperature,
                logprob_chunk,
            ).sum()  # fmt: skip

        parts = jax.grad(log_likelihood)([leaves[i] for i in chosen])
        gradient = jnp.concatenate([part.astype(jnp.float32).ravel() for part in parts])
        return jnp.sum(gradient**2), sketch(gradient)

    return jax.lax.map(measure, rollouts, batch_size=settings.chunk)


@struct.dataclass
class CountSketch:
    """A random linear map from P numbers to k with E‖sketch(x)‖² = ‖x‖²; the identity where k is 0 or not below P."""

    order: Int[Array, " padded"] | None  # coordinates as they are dealt out, k at a time; P and above are padding
    signs: Float[Array, " P"] | None
    size: int = struct.field(pytree_node=False)  # k

    @classmethod
    def random(cls, coordinates: int, size: int, seed: int) -> "CountSketch":
        """A map from `coordinates` numbers to `size`."""
        if size == 0 or size >= coordinates:
            return cls(None, None, coordinates)
        random = np.random.default_rng(seed)
        signs = 2 * random.integers(0, 2, coordinates, np.int8) - 1
        return cls(random.permutation(coordinates + -coordinates % size).astype(np.int32), signs, size)

    def __call__(self, x: Float[Array, " P"]) -> Float[Array, " k"]:
        """The sketch of x."""
        if self.order is None:
            return x
        padded = jnp.pad(x * self.signs, (0, len(self.order) - len(x)))
        return padded[self.order].reshape(-1, self.size).sum(0)
