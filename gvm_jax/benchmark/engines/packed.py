"""Given responses as this project's rollouts: what its engines that train or score share."""

import pathlib


def given_rollouts(workload: dict):
    """`Rollouts` of the workload's responses, log-probabilities zero; groups are the workload's, or one a response."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gvm_jax.rollout.rollouts import Samples

    prompts, responses = workload["prompts"], workload["responses"]
    samples = Samples(max(map(len, responses)))
    for row, response in zip(samples.add(len(responses)), responses, strict=True):
        samples.append(np.array([row]), np.array([response]), np.zeros((1, len(response)), np.float32))
    rollouts = samples.rollouts(prompts, np.arange(len(prompts)), max(map(len, prompts)))
    if workload["groups"]:
        rollouts = rollouts.replace(group=np.array(workload["groups"], np.int32))
    return jax.tree.map(jnp.asarray, rollouts)


def given_model(workload: dict, remat: str, attention: str = "auto"):
    """The model on one device, the mesh of this device and the model's folder; arguments as in `config.model`."""
    import jax
    import numpy as np

    from gvm_jax.config import get_config
    from gvm_jax.models.config import Qwen2Config
    from gvm_jax.models.packed_attention import resolve_attention
    from gvm_jax.models.qwen2 import Model
    from gvm_jax.models.sharding import batch_sharding
    from gvm_jax.runtime.mesh import make_mesh

    mesh, folder = make_mesh(get_config().mesh, jax.devices()[:1]), pathlib.Path(workload["model"])
    network, dtype = Qwen2Config.from_folder(folder), np.dtype(workload["dtype"])
    attention = resolve_attention(attention, dtype, mesh.devices.flat[0].platform)
    return Model(network, dtype, remat, activation_sharding=batch_sharding(mesh), attention=attention), mesh, folder


def logprobs_program(model, rollouts, micro_batch: int, temperature: float, chunk: int):
    """A jitted function from parameters to log π of the responses [N, T], and the share of tokens that are theirs.

    Samples are packed into rows as for training, `micro_batch` rows a pass.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gvm_jax.models.logprobs import hidden_states, token_logprobs
    from gvm_jax.training.packing import PackedRows, pack

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
