"""Per-sample gradient norms ‖∇_W log π(y|x)‖ of chosen parameters W, by vmap over chunks of samples.

The gradient is that of the log-probability summed over the response's tokens (arXiv 2505.02391, Algorithm 2), which
rejection sampling's estimator averages. Only the wanted samples cost anything: they are sorted to the front, and
chunks without any are skipped.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.config import ConfigError
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.rollout.rollouts import Rollouts


@dataclasses.dataclass(frozen=True)
class GradientNormSettings:
    """Static settings; the fields of `config.gradient_norms` under the same names."""

    parameters: str  # regular expression searched in the parameters' dotted paths
    chunk: int  # samples whose gradients are held at once
    max_samples: int  # most samples measured in a call; 0 = all

    @classmethod
    def from_config(cls, config) -> "GradientNormSettings":
        """From the section `config.gradient_norms`."""
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


def split_params(params: Params, pattern: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """(chosen, others) by dotted path; chosen are those in whose path the pattern is found.

    Raises:
      ConfigError: nothing is chosen.
    """
    flat = {
        ".".join(str(entry.key) for entry in path): value for path, value in jax.tree_util.tree_leaves_with_path(params)
    }
    chosen = {path: value for path, value in flat.items() if re.search(pattern, path)}
    if not chosen:
        raise ConfigError(
            f"gradient_norms.parameters = {pattern!r}: found in no parameter's path; the paths are {', '.join(flat)}"
        )
    return chosen, {path: value for path, value in flat.items() if path not in chosen}


def _join(flat: dict[str, Array]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def wanted_samples(
    accepted: Bool[Array, " N"], segments: Int[Array, " N"], max_samples: int
) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """Which rows to measure: the accepted ones, in turn over the segments, R = max_samples or N of them.

    Args:
      accepted: rows that count.
      segments: the prompt of each row, ascending.
      max_samples: static; 0 = all rows.

    Returns:
      Row numbers, wanted ones first, and which of them are wanted.
    """
    count = jnp.cumsum(accepted)
    first = jnp.searchsorted(segments, segments, side="left")
    before = jnp.where(first > 0, count[first - 1], 0)
    turn = jnp.where(accepted, count - before, accepted.shape[0] + 1)  # 1 for a segment's first accepted row
    rows = jnp.argsort(turn)[: max_samples or None]
    return rows, accepted[rows]


def per_sample_gradient_norms(
    model: Model,
    params: Params,
    rollouts: Rollouts,
    rows: Int[Array, " R"],
    wanted: Bool[Array, " R"],
    settings: GradientNormSettings,
    temperature: float,
    logprob_chunk: int,
) -> Float[Array, " R"]:
    """‖∇ Σ_t log π_T(y_t)‖₂ with respect to the chosen parameters, 0 for rows that are not wanted.

    Args:
      rows: rows of `rollouts`, the wanted ones first.
      wanted: which of them to measure.
      settings: which parameters, and how many gradients to hold at once.
      temperature: of the sampling policy.
      logprob_chunk: as for `response_logprobs`.
    """
    chosen, others = split_params(params, settings.parameters)
    chunk = min(settings.chunk, rows.shape[0])
    steps = -(-rows.shape[0] // chunk)
    padding = steps * chunk - rows.shape[0]
    rows, wanted = jnp.pad(rows, (0, padding)), jnp.pad(wanted, (0, padding))

    def log_likelihood(chosen, tokens, prompt_length, response_length):
        module = model.bind(_join({**chosen, **others}))
        logprobs = response_logprobs(
            module, tokens[None], prompt_length[None], response_length[None], rollouts.max_response, temperature,
            logprob_chunk,
        )  # fmt: skip
        return logprobs.sum()

    def norm(tokens, prompt_length, response_length):
        gradient = jax.grad(log_likelihood)(chosen, tokens, prompt_length, response_length)
        return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in gradient.values()))

    def measure(chunk_rows):
        fields = (rollouts.tokens, rollouts.prompt_lengths, rollouts.response_lengths)
        return jax.vmap(norm)(*(field[chunk_rows] for field in fields))

    def chunk_norms(args):
        chunk_rows, chunk_wanted = args
        norms = jax.lax.cond(chunk_wanted.any(), measure, lambda r: jnp.zeros(r.shape, jnp.float32), chunk_rows)
        return jnp.where(chunk_wanted, norms, 0.0)

    norms = jax.lax.map(chunk_norms, (rows.reshape(steps, chunk), wanted.reshape(steps, chunk)))
    return norms.reshape(-1)[: steps * chunk - padding]
