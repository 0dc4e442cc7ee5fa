"""Operations that the mathematics of a step asks for, whatever the compiler makes of it.

A matrix product of [a, b] and [b, c] is 2·a·b·c operations. Per token a layer costs 2 operations a weight, and
4·heads·head_dim for each key that the token attends to: those before it, so (S + 1)/2 on average of a row of S tokens.
A backward pass costs twice the forward one; nothing is recomputed. Samples are counted at the most tokens that they can
have, P + T = data.max_prompt_tokens + rollout.max_new_tokens, so that each fills a packed row of the train step, and
every one is taken to have a gradient; the head is counted on the T response positions. Norms, softmaxes and the
optimizer are left out.
"""

import dataclasses

from gvm_jax.models.config import Qwen2Config
from gvm_jax.planning.parts import Parts
from gvm_jax.training.gradient_norms import measured_parts


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step's sequences look like; assumed, since no data is read."""

    prompt_tokens: float  # mean length of a prompt
    response_tokens: float  # mean length of a response


def layer_weights(network: Qwen2Config) -> int:
    """Weights of one layer's matrices."""
    d, heads, kv = network.hidden_size, network.num_attention_heads, network.num_key_value_heads
    return d * network.head_dim * (2 * heads + 2 * kv) + 3 * d * network.intermediate_size


def attention_flops(network: Qwen2Config, keys: float) -> float:
    """Of one token that attends to so many keys, in all layers."""
    return 4.0 * network.num_hidden_layers * network.num_attention_heads * network.head_dim * keys


def body_flops(network: Qwen2Config, tokens: float, keys: float) -> float:
    """Forward pass of all layers over tokens that attend to `keys` keys each on average."""
    return tokens * (2.0 * network.num_hidden_layers * layer_weights(network) + attention_flops(network, keys))


def head_flops(network: Qwen2Config, tokens: float) -> float:
    """Logits of so many tokens."""
    return 2.0 * tokens * network.hidden_size * network.vocab_size


def update_flops(parts: Parts) -> float:
    """Forward and backward pass over every row of a step, with those of the old and the reference policy."""
    config, network = parts.config, parts.network
    rows, response = config.rollouts_per_step, config.rollout.max_new_tokens
    length = response + config.data.max_prompt_tokens
    forward = body_flops(network, length, (length + 1) / 2) + head_flops(network, response)
    passes = 3
    passes += parts.step.objective.importance_cap is not None
    passes += config.objective.kl_coefficient > 0
    return rows * passes * forward


def packed_share(parts: Parts, workload: Workload) -> float:
    """Share of the train step's micro-batches that samples of the workload's lengths fill, rows being 95 % full."""
    length = parts.config.data.max_prompt_tokens + parts.config.rollout.max_new_tokens
    return min((workload.prompt_tokens + workload.response_tokens) / (0.95 * length), 1.0)


def norm_flops(parts: Parts, rows: int) -> float:
    """Per-sample gradient norms of as many of the rows as are measured (`training/gradient_norms.py`)."""
    config, network, step = parts.config, parts.network, parts.step
    if step.allocator.strategy.norms == "none":
        return 0.0
    method = step.norms.method
    d, vocabulary = network.hidden_size, network.vocab_size
    response = config.rollout.max_new_tokens
    length = response + config.data.max_prompt_tokens
    keys = (length + 1) / 2
    forward = body_flops(network, length, keys)
    if step.norms.max_samples:
        rows = min(rows, step.norms.max_samples)
    if method == "vmap":
        return rows * 3 * (forward + head_flops(network, response))
    measured = measured_parts(parts.model.abstract_params, step.norms)
    logits = head_flops(network, response)
    products = response**2 * (vocabulary + 2.0 * d) if measured.head else 0.0  # of a symmetric matrix one half
    if measured.head and measured.embeddings and network.tie_word_embeddings:
        products += 4.0 * response * length * d
    # The backward pass is that of the activations alone: as dear as the forward one, its attention twice.
    backward = forward + length * attention_flops(network, keys) + logits if measured.embeddings else 0.0
    return rows * (forward + logits + backward + products)


def program_flops(parts: Parts, name: str, workload: Workload) -> float:
    """Of one run of a program of `Parts.lower`, over all devices: every replica decodes a batch of its own."""
    config, network, step = parts.config, parts.network, parts.step
    if name == "train step":
        fresh = config.rollouts_per_step - step.pilot_rollouts
        return update_flops(parts) + norm_flops(parts, fresh)
    if name == "pilot":
        return norm_flops(parts, step.pilot_rollouts)
    if name == "prefill":
        tokens = parts.replicas * config.rollout.prefill_tokens
        return body_flops(network, tokens, workload.prompt_tokens / 2)
    if name.startswith("decode"):
        tokens = parts.replicas * int(name.split()[-1]) * config.rollout.block_steps
        keys = workload.prompt_tokens + workload.response_tokens / 2
        return body_flops(network, tokens, keys) + head_flops(network, tokens)
    return 0.0


def training_kernel_flops(parts: Parts, name: str) -> float:
    """Operations on one device of splash attention in the train step or the pilot program.

    A forward pass is two products of queries and keys or values, the two kernels of a backward pass are seven (scores
    and the slopes of weights are computed in both). A kernel leaves out the blocks above the diagonal, not those
    between two samples of a row. Where layers are computed again so is their attention, whatever `model.remat` keeps.
    """
    config, network, step = parts.config, parts.network, parts.step
    if parts.model.attention != "splash":
        return 0.0
    length = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    row = length * config.optimizer.samples_per_row
    again = config.model.remat != "none"
    backward = 3.5 + again
    pilots, passes = step.pilot_rollouts, 0.0
    rows = pilots if name == "pilot" else config.rollouts_per_step - pilots
    if step.allocator.strategy.norms != "none" and step.norms.method == "gram":
        measured = measured_parts(parts.model.abstract_params, step.norms)
        measured = min(rows, step.norms.max_samples or rows)
        passes += measured * length * (length + 1) / 2 * (1 + backward * measured.embeddings)
    if name == "train step":
        others = (step.objective.importance_cap is not None) + (config.objective.kl_coefficient > 0)
        passes += config.rollouts_per_step * length * (row + 1) / 2 * (1 + backward + others)
    mesh = parts.mesh.shape
    heads = mesh["tensor"] if network.num_attention_heads % mesh["tensor"] == 0 else 1
    return attention_flops(network, passes) / (mesh["data"] * mesh["fsdp"] * heads)


def kernel_costs(parts: Parts, name: str, workload: Workload) -> tuple[float, float]:
    """(operations, bytes read) of the attention kernels on one device: what no compiler counts.

    A replica's sequences are its own; its devices share their heads. Bytes are those of the cache alone.
    """
    if name in ("train step", "pilot"):
        return training_kernel_flops(parts, name), 0.0
    if parts.kernels == "xla" or not name.startswith(("decode", "prefill")):
        return 0.0, 0.0
    network, config, settings = parts.network, parts.config, parts.engine.settings
    tensor = parts.tensor
    share = tensor if network.num_key_value_heads % tensor == 0 else 1
    if name == "prefill":
        tokens, keys = settings.prefill_tokens, workload.prompt_tokens / 2
        sequences = max(1.0, tokens / max(workload.prompt_tokens, 1.0))
        read = sequences * workload.prompt_tokens
    else:
        tokens = int(name.split()[-1]) * config.rollout.block_steps
        keys = workload.prompt_tokens + workload.response_tokens / 2
        read = tokens * keys
    held = parts.engine.abstract_policy["cache"]
    token_bytes = 2 * network.num_key_value_heads * held.shape[-1] * held.dtype.itemsize * network.num_hidden_layers
    return tokens * attention_flops(network, keys) / share, read * token_bytes / share
