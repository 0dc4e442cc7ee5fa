"""This project's config, model and given responses for its tasks."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax_device import JaxEngine
from ml_collections import ConfigDict

from gvm_jax.config import get_config, validate
from gvm_jax.models.assemble import make_model
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.logprobs import hidden_states, token_logprobs
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import param_shardings
from gvm_jax.models.weights import load_params
from gvm_jax.rollout.rollouts import Rollouts, Samples
from gvm_jax.runtime.mesh import describe_devices, make_mesh
from gvm_jax.training.packing import PackedRows, pack


def make_config(workload: dict, **fields) -> ConfigDict:
    """The defaults for a workload.

    Args:
      workload: its sizes, dtype and model; "fields" holds those that the command line sets.
      fields: further ones of the config, with __ for a dot, which the command line may override.

    Raises:
      ConfigError: a field that does not exist, or with a value that it cannot have.
    """
    config = get_config()
    sizes = {
        "model.path": workload["model"],
        "model.compute_dtype": workload["dtype"],
        "data.path": workload["name"],
        "data.max_prompt_tokens": max(map(len, workload["prompts"])),
        "rollout.max_new_tokens": workload["max_new_tokens"],
        "rollout.slots": workload["slots"],
    }
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    with config.unlocked(), config.ignore_type():  # `validate` says which field is unknown, or of another type
        config.update_from_flattened_dict({**sizes, **fields, **workload["fields"]})
    validate(config)
    return config


def training_sizes(workload: dict) -> dict[str, int]:
    """Fields of one update on all responses."""
    rollouts = sum(workload["counts"])
    prompts = max(workload["groups"], default=len(workload["prompts"]) - 1) + 1
    return {
        "prompts_per_step": prompts, "rollouts_per_step": rollouts, "optimizer__updates_per_step": 1,
        "optimizer__micro_batch": workload["micro_batch"],
    }  # fmt: skip


class GvmJaxEngine(JaxEngine):
    """With a model on the devices of a mesh.

    Args:
      workload: of the server.
      devices: how many; None = all.
      fields: as of `make_config`.
    """

    packages = ("jax", "jaxlib", "flax", "optax")

    def __init__(self, workload: dict, devices: int | None = 1, **fields):
        super().__init__(workload)
        self.config = make_config(workload, **fields)
        self.mesh = make_mesh(self.config.mesh, jax.devices()[:devices])
        self.folder = pathlib.Path(workload["model"])
        self.model, _ = make_model(self.config.model, Qwen2Config.from_folder(self.folder), self.mesh)
        self.configured = f"computed in {workload['dtype']}, {describe_devices()}"

    def load(self, dtype: np.dtype | None = None):
        """The parameters, float32 unless another dtype is asked for."""
        return load_params(self.model, self.folder, param_shardings(self.model, self.mesh), dtype)


def given_rollouts(workload: dict) -> Rollouts:
    """The workload's responses, log-probabilities zero; groups are the workload's, or one a response."""
    prompts, responses = workload["prompts"], workload["responses"]
    samples = Samples(max(map(len, responses)))
    for row, response in zip(samples.add(len(responses)), responses, strict=True):
        samples.append(np.array([row]), np.array([response]), np.zeros((1, len(response)), np.float32))
    each = np.arange(len(prompts), dtype=np.int32)  # a prompt is there once for each response
    rollouts = samples.rollouts(prompts, each, max(map(len, prompts)))
    if workload["groups"]:
        rollouts = rollouts.replace(group=np.array(workload["groups"], np.int32))
    return jax.tree.map(jnp.asarray, rollouts)


def logprobs_program(model: Model, rollouts: Rollouts, micro_batch: int, temperature: float, chunk: int):
    """A jitted function from parameters to log π of the responses [N, T], and the share of tokens that are theirs.

    Samples are packed into rows as for training, `micro_batch` rows a pass.
    """
    samples, length = rollouts.tokens.shape
    lengths = np.asarray(rollouts.prompt_lengths + rollouts.response_lengths)
    order = np.argsort(-lengths, kind="stable").astype(np.int32)  # the longest first leave the least padding
    begins = np.asarray(pack(jnp.array(lengths[order]), jnp.array(order), samples, length))
    begins = begins[(begins >= 0).any(1)]
    begins = np.pad(begins, ((0, -len(begins) % micro_batch), (0, 0)), constant_values=-1)
    begins = begins.reshape(-1, micro_batch, length)

    def logprobs(params):
        module = model.bind(params)

        def of(begins):
            rows = PackedRows.fill(begins, rollouts)
            hidden = hidden_states(module, rows.tokens, rows.positions, rows.sample)
            found, _ = token_logprobs(module, hidden, rows.tokens, rows.response, temperature, chunk)
            offset = rows.positions - rollouts.prompt_lengths[jnp.minimum(rows.sample, samples - 1)]
            return jnp.where(rows.response, rows.sample, samples), offset, found

        sample, offset, found = jax.lax.map(of, jnp.array(begins))
        return jnp.zeros((samples, rollouts.max_response)).at[sample, offset].set(found, mode="drop")

    return jax.jit(logprobs), float(lengths.sum() / begins.size)
