"""Updates that are not finite are left out, and their batch is kept for inspection where there are too many."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from gvm_jax.models.qwen2 import Params
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.files import write_atomically


def finite_update(loss: Float[Array, "*U"], gradient_norm: Float[Array, "*U"]) -> Bool[Array, "*U"]:
    """Whether an update may be applied. The norm is not finite either where its square leaves float32."""
    return jnp.isfinite(loss) & jnp.isfinite(gradient_norm)


def apply_if(
    wanted: Bool[Array, ""],
    optimizer: optax.GradientTransformation,
    gradients: Params,
    opt_state: PyTree,
    params: Params,
) -> tuple[Params, PyTree]:
    """Parameters and optimizer state after the update; where it is not wanted, as they were, to the bit."""
    updates, after = optimizer.update(gradients, opt_state, params)
    new = optax.apply_updates(params, updates), after
    return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), new, (params, opt_state))


def save_batch(
    workdir: pathlib.Path, step: int, prompt_ids: np.ndarray, rollouts: Rollouts, rewards: np.ndarray
) -> pathlib.Path:
    """Writes a step's batch to `skipped/step-N.npz`: the fields of Rollouts by name, rewards and prompt ids.

    Args:
      workdir: folder of the run.
      step: number of the step.
      prompt_ids: int32[m]; `rollouts.group` indexes it.
      rollouts: numpy arrays.
      rewards: float32[N].

    Returns:
      The file.
    """
    path, file = workdir / "skipped" / f"step-{step}.npz", io.BytesIO()
    np.savez_compressed(file, prompt_ids=prompt_ids, rewards=rewards, **vars(rollouts))
    write_atomically(path, file.getvalue())
    return path
