"""Operations that the mathematics of a step asks for, whatever the compiler makes of it.

A matrix product of [a, b] and [b, c] is 2·a·b·c operations. Per token a layer costs 2 operations a weight, and
4·heads·head_dim for each key that the token attends to: those before it, so (S + 1)/2 on average of a row of S tokens.
A backward pass costs twice the forward one; nothing is recomputed. Samples are counted at the most tokens that they can
have, P + T = data.max_prompt_tokens + rollout.max_new_tokens, so that each fills a packed row of the train step, and
every one is taken to have a gradient; the head is counted on the T response positions. Norms, softmaxes and the
optimizer are left out.
"""

from gvm_jax.models.config import Qwen2Config
from gvm_jax.planner.abstract_run import AbstractRun
from gvm_jax.training.gradient_norms import measured_parts


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


def update_flops(run: AbstractRun) -> float:
    """Forward and backward pass over every row of a step, with those of the old and the reference policy."""
    config, network, length = run.config, run.network, run.max_tokens
    forward = body_flops(network, length, (length + 1) / 2) + head_flops(network, config.rollout.max_new_tokens)
    return config.rollouts_per_step * (3 + _other_policies(run)) * forward


def _other_policies(run: AbstractRun) -> int:
    """Policies other than the trained one whose log-probabilities a step computes, a forward pass each."""
    return (run.step.objective.importance_cap is not None) + (run.config.objective.kl_coefficient > 0)


def packed_share(run: AbstractRun) -> float:
    """Share of the train step's micro-batches that samples of mean lengths fill, rows being 95 % full."""
    return min((run.prompt_tokens + run.response_tokens) / (0.95 * run.max_tokens), 1.0)


def norm_flops(run: AbstractRun, rows: int) -> float:
    """Per-sample gradient norms of as many of the rows as are measured (`training/gradient_norms.py`)."""
    network, step = run.network, run.step
    if step.allocator.strategy.norms == "none":
        return 0.0
    response, length = run.config.rollout.max_new_tokens, run.max_tokens
    keys = (length + 1) / 2
    forward, logits = body_flops(network, length, keys), head_flops(network, response)
    if step.norms.max_samples:
        rows = min(rows, step.norms.max_samples)
    if step.norms.method == "vmap":
        return rows * 3 * (forward + logits)
    measured = measured_parts(run.model.abstract_params, step.norms)
    d = network.hidden_size
    products = response**2 * (network.vocab_size + 2.0 * d) if measured.head else 0.0  # of a symmetric matrix one half
    if measured.head and measured.embeddings and network.tie_word_embeddings:
        products += 4.0 * response * length * d
    # The backward pass is that of the activations alone: as dear as the forward one, its attention twice.
    backward = forward + length * attention_flops(network, keys) + logits if measured.embeddings else 0.0
    return rows * (forward + logits + backward + products)


def program_flops(run: AbstractRun, name: str) -> float:
    """Of one run of a program of `AbstractRun.lower`, over all devices: every replica decodes a batch of its own."""
    pilots = run.step.pilot_rollouts
    if name == "train step":
        return update_flops(run) + norm_flops(run, run.config.rollouts_per_step - pilots)
    if name == "pilot":
        return norm_flops(run, pilots)
    if name == "copy pages":
        return 0.0
    tokens, keys = _sampled_tokens(run, name)
    head = 0.0 if name == "prefill" else head_flops(run.network, run.replicas * tokens)
    return body_flops(run.network, run.replicas * tokens, keys) + head


def _sampled_tokens(run: AbstractRun, name: str) -> tuple[int, float]:
    """(tokens, keys that each attends to) of a replica in one run of prefill or of a decode block."""
    rollout = run.config.rollout
    if name == "prefill":
        return rollout.prefill_tokens, run.prompt_tokens / 2
    return int(name.split()[-1]) * rollout.block_steps, run.prompt_tokens + run.response_tokens / 2


def training_kernel_flops(run: AbstractRun, name: str) -> float:
    """Operations on one device of splash attention in the train step or the pilot program.

    A forward pass is two products of queries and keys or values, the two kernels of a backward pass are seven (scores
    and the cotangents of weights are computed in both). A kernel leaves out the blocks above the diagonal, not those
    between two samples of a row. Where layers are computed again so is their attention, whatever `model.remat` keeps.
    """
    config, step, length = run.config, run.step, run.max_tokens
    if run.model.attention != "splash":
        return 0.0
    backward = 3.5 + (config.model.remat != "none")
    pilots, passes = step.pilot_rollouts, 0.0
    if step.allocator.strategy.norms != "none" and step.norms.method == "gram":
        measured = measured_parts(run.model.abstract_params, step.norms)
        rows = pilots if name == "pilot" else config.rollouts_per_step - pilots
        rows = min(rows, step.norms.max_samples or rows)
        passes += rows * length * (length + 1) / 2 * (1 + backward * measured.embeddings)
    if name == "train step":
        keys = (length * config.optimizer.samples_per_row + 1) / 2
        passes += config.rollouts_per_step * length * keys * (1 + backward + _other_policies(run))
    mesh = run.mesh.shape
    heads = mesh["tensor"] if run.network.num_attention_heads % mesh["tensor"] == 0 else 1
    return attention_flops(run.network, passes) / (mesh["data"] * mesh["fsdp"] * heads)


def kernel_costs(run: AbstractRun, name: str) -> tuple[float, float]:
    """(operations, bytes read) of the attention kernels on one device, which no compiler counts.

    A replica's sequences are its own; its devices share their heads. Bytes are those of the cache alone.
    """
    if name in ("train step", "pilot"):
        return training_kernel_flops(run, name), 0.0
    if run.kernels == "xla" or name == "copy pages":
        return 0.0, 0.0
    network = run.network
    tokens, keys = _sampled_tokens(run, name)
    # A prefill reads the keys of each of its prompts once, a decode step those of each token.
    read = max(tokens, run.prompt_tokens) if name == "prefill" else tokens * keys
    share = run.tensor if network.num_key_value_heads % run.tensor == 0 else 1
    held = run.engine.abstract_policy["cache"]
    token_bytes = 2 * network.num_key_value_heads * held.shape[-1] * held.dtype.itemsize * network.num_hidden_layers
    return tokens * attention_flops(network, keys) / share, read * token_bytes / share
