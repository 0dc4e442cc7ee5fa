"""Formulas for the temporaries of programs that are not compiled: of GPUs, and of changes to a config."""

import jax

from gvm_jax.planner.abstract_run import AbstractRun


def decode_temporaries(run: AbstractRun) -> int:
    """Bytes of the widest decode block on a device: logits in float32, their sort keys and noise."""
    return run.engine.settings.slots * run.network.vocab_size * 4 * 3 // run.tensor


def train_temporaries(run: AbstractRun) -> int:
    """Bytes of the train step's temporaries on a device.

    Gradients in float32, one micro-batch's own, in which those of the layers have the compute dtype, and the layers in
    it; for each row of a micro-batch on the device the residual stream of every layer (with full remat; else a whole
    layer's activations) and one layer's activations; and the logits of a chunk three times in float32. Where rows are
    split over devices the head is gathered: its kernel and its gradient in float32.
    """
    config, network, mesh = run.config, run.network, run.mesh.shape
    width, tensor, shards = run.model.dtype.itemsize, mesh["tensor"], mesh["data"] * mesh["fsdp"]
    samples_per_row = config.optimizer.samples_per_row
    rows = max(1, config.optimizer.micro_batch // (shards * samples_per_row))
    length = samples_per_row * run.max_tokens
    d, layers = network.hidden_size, network.num_hidden_layers
    heads = (network.num_attention_heads + 2 * network.num_key_value_heads) * network.head_dim
    layer = length * width * (4 * d + 2 * heads + 3 * network.intermediate_size) // tensor
    scores = {  # the kernels hold none; cuDNN's takes a mask
        "xla": 3 * min(256, length) * length * network.num_attention_heads * 4 // tensor,
        "cudnn": 2 * length**2,
        "splash": 0,
    }[run.model.attention]
    saved = layers * (length * d * width if config.model.remat == "full" else layer)
    logits = 3 * config.optimizer.logprob_chunk * network.vocab_size * 4 // tensor
    head = 2 * 4 * d * network.vocab_size // tensor if shards > 1 else 0
    stacked = 4 * sum(x.size for x in jax.tree.leaves(run.model.abstract_params["layers"]))
    share = stacked / (4 * sum(x.size for x in jax.tree.leaves(run.model.abstract_params)))
    gradients = run.held("train step")["parameters"] * (2 - share + 2 * share * width / 4)
    return int(gradients + 2 * (stacked // layers // tensor) + head + logits + rows * (saved + 2 * layer + scores))


def norm_temporaries(run: AbstractRun) -> int:
    """Bytes of the products that a chunk of per-sample gradient norms takes on a device."""
    if run.step.allocator.strategy.norms == "none":
        return 0
    response = run.config.rollout.max_new_tokens
    return run.config.gradient_norms.chunk * response * (2048 + 2 * response) * 4
