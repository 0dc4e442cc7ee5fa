"""What the devices run: prefill chunks of prompts, copy pages of the KV cache, decode a block of steps.

All are pure functions of one replica's arrays, of fixed shapes. The engine compiles them, once for each width of a
batch, inside a `jax.shard_map` over the mesh axis "data", and donates the cache to every call.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.rollout.paged_attention import PagedAttention, Tiles
from gvm_jax.rollout.sampling import sample_key, sample_tokens
from gvm_jax.rollout.settings import RolloutSettings


@struct.dataclass
class DecodeBatch:
    """The S sequences that decode together; idle rows fill it up to its width."""

    token: Int[Array, " S"]  # the next input token
    position: Int[Array, " S"]  # its position in the sequence; -1 = idle
    limit: Int[Array, " S"]  # tokens that the sequence may have, prompt included
    prompt_id: Int[Array, " S"]
    sample: Int[Array, " S"]  # index of the sample among its prompt's samples
    page_table: Int[Array, "S M"]  # the sequence's pages in order
    shared: Int[Array, " S"]  # the leading tokens that the tile reads
    tiles: Tiles


def prefill(
    model: Model,
    attention: PagedAttention,
    params: Params,
    cache: Float[Array, "LP page KV2 D"],
    tokens: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    tables: Int[Array, "B M"],
) -> Float[Array, "LP page KV2 D"]:
    """Write the keys and values of chunks of sequences; a negative position marks padding.

    Each layer writes all chunks before any is read, so one call may hold all the chunks of a sequence.
    """
    _, cache = model.bind(params)(tokens, jnp.maximum(positions, 0), attention.prefill(tables, positions), cache)
    return cache


def copy_pages(
    num_pages: int, cache: Float[Array, "LP page KV2 D"], source: Int[Array, " S"], target: Int[Array, " S"]
) -> Float[Array, "LP page KV2 D"]:
    """The cache with pages `target` equal to pages `source`, in every layer of `num_pages`.

    One after another: for a scatter a TPU's compiler lays the whole cache out anew.
    """
    by_layer = cache.reshape(-1, num_pages, *cache.shape[1:])

    def copy(i, by_layer):
        page = jax.lax.dynamic_slice_in_dim(by_layer, source[i], 1, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(by_layer, page, target[i], axis=1)

    return jax.lax.fori_loop(0, len(source), copy, by_layer).reshape(cache.shape)


def decode(
    model: Model,
    attention: PagedAttention,
    settings: RolloutSettings,
    stop_ids: tuple[int, ...],
    params: Params,
    cache: Float[Array, "LP page KV2 D"],
    batch: DecodeBatch,
    key: Key[Array, ""],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, "LP page KV2 D"], Int[Array, "S K"], Float[Array, "S K"]]:
    """Up to `settings.block_steps` tokens for each sequence; ends early when all sequences of all replicas have ended.

    Returns the cache, the sampled tokens (-1 after a sequence's end) and their log-probabilities under the policy
    softmax(logits / temperature), before the nucleus and top-k cuts.
    """
    network = model.bind(params)
    ends_response = jnp.array(stop_ids, jnp.int32)
    size = (batch.token.shape[0], settings.block_steps)
    sample_keys = jax.vmap(sample_key, (None, 0, 0))(key, batch.prompt_id, batch.sample)

    def any_live(position):
        # Agreed on by all replicas: a step's collectives over their devices may involve all of the mesh's.
        return jax.lax.pmax((position >= 0).any().astype(jnp.int32), "data")

    def step(carry):
        i, _, cache, token, position, tokens, logprobs = carry
        active = position >= 0
        paged = attention.decode(batch.page_table, position, batch.shared, batch.tiles)
        at = jnp.maximum(position, 0)
        hidden, cache = network(token[:, None], at[:, None], paged, cache)
        logits = network.logits(hidden[:, 0])
        keys = jax.vmap(jax.random.fold_in)(sample_keys, at + 1)
        token = sample_tokens(logits, keys, temperature, settings.top_p, settings.top_k)
        tokens = tokens.at[:, i].set(jnp.where(active, token, -1))
        logprobs = logprobs.at[:, i].set(select_logprobs(logits, token, temperature))
        ends = (token[:, None] == ends_response).any(-1) | (at + 2 >= batch.limit)
        position = jnp.where(active & ~ends, position + 1, -1)
        return i + 1, any_live(position), cache, token, position, tokens, logprobs

    def unfinished(carry):
        return (carry[0] < settings.block_steps) & (carry[1] > 0)

    empty = jnp.full(size, -1, jnp.int32), jnp.zeros(size, jnp.float32)
    start = (jnp.int32(0), any_live(batch.position), cache, batch.token, batch.position, *empty)
    _, _, cache, _, _, tokens, logprobs = jax.lax.while_loop(unfinished, step, start)
    return cache, tokens, logprobs
