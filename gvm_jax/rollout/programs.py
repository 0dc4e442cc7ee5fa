"""The engine's three jitted programs: prefill prompts, admit samples to slots, decode a block of steps.

All shapes are fixed by the settings, so each program is compiled once. The cache is donated to every call.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.rollout.attention import paged_attention
from gvm_jax.rollout.sampling import sample_key, sample_tokens


@struct.dataclass
class Slots:
    """What the decoder knows of the S sequences in flight."""

    token: Int[Array, " S"]  # the next input token
    position: Int[Array, " S"]  # its position in the sequence; -1 = the slot is idle
    length_limit: Int[Array, " S"]  # tokens that the sequence may have, prompt included
    key: Key[Array, " S"]  # the sample's key; folded with a position it gives that position's token
    page_table: Int[Array, "S M"]  # the sequence's pages in order

    @classmethod
    def idle(cls, slots: int, table_width: int) -> "Slots":
        """All slots idle."""
        zeros = jnp.zeros(slots, jnp.int32)
        keys = jax.random.split(jax.random.key(0), slots)
        return cls(zeros, zeros - 1, zeros, keys, jnp.zeros((slots, table_width), jnp.int32))


@struct.dataclass
class Admission:
    """New samples for some of the S slots."""

    taken: Bool[Array, " S"]  # the slots that get a new sample
    token: Int[Array, " S"]  # the prompt's last token
    position: Int[Array, " S"]
    length_limit: Int[Array, " S"]
    prompt_id: Int[Array, " S"]
    sample: Int[Array, " S"]  # index of the sample among the prompt's samples
    page_table: Int[Array, "S M"]
    copy_from: Int[Array, " S"]  # the prompt's last, partly filled page; the trash page where there is none
    copy_to: Int[Array, " S"]  # the sample's own page that takes its contents


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs' static settings."""

    model: Model
    num_pages: int
    block_steps: int
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...]

    def prefill(
        self,
        params: Params,
        cache,
        tokens: Int[Array, "B C"],
        positions: Int[Array, "B C"],
        tables: Int[Array, "B M"],
    ) -> Float[Array, "LP page KV2 D"]:
        """Write the keys and values of a chunk of prompt tokens; a negative position marks padding."""
        attention = paged_attention(tables, positions, self.num_pages)
        _, cache = self.model.bind(params)(tokens, jnp.maximum(positions, 0), attention, cache)
        return cache

    def admit(self, cache, slots: Slots, new: Admission, key: Key[Array, ""]) -> tuple[Array, Slots]:
        """Put new samples into slots, each with its own copy of the page that prompt and response share."""
        layers = cache.shape[0] // self.num_pages
        first = jnp.arange(layers)[:, None] * self.num_pages
        cache = cache.at[first + new.copy_to].set(cache[first + new.copy_from])
        keys = jax.vmap(sample_key, (None, 0, 0))(key, new.prompt_id, new.sample)

        def choose(old, fresh):
            return jnp.where(new.taken.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

        slots = Slots(
            token=choose(slots.token, new.token),
            position=choose(slots.position, new.position),
            length_limit=choose(slots.length_limit, new.length_limit),
            key=choose(slots.key, keys),
            page_table=choose(slots.page_table, new.page_table),
        )
        return cache, slots

    def decode(
        self, params: Params, cache, slots: Slots, temperature: Float[Array, ""]
    ) -> tuple[Array, Slots, Int[Array, "S K"], Float[Array, "S K"]]:
        """Up to `block_steps` tokens for each slot; ends early when every slot is idle.

        Returns the sampled tokens (-1 where a slot was idle) and their log-probabilities under the policy
        softmax(logits / temperature), before the nucleus and top-k cuts.
        """
        model = self.model.bind(params)
        stop_ids = jnp.array(self.stop_ids, jnp.int32)
        size = (slots.token.shape[0], self.block_steps)

        def step(carry):
            i, cache, slots, tokens, logprobs = carry
            active = slots.position >= 0
            attention = paged_attention(slots.page_table, slots.position[:, None], self.num_pages)
            at = jnp.maximum(slots.position, 0)
            hidden, cache = model(slots.token[:, None], at[:, None], attention, cache)
            logits = model.logits(hidden[:, 0])
            keys = jax.vmap(jax.random.fold_in)(slots.key, at + 1)
            token = sample_tokens(logits, keys, temperature, self.top_p, self.top_k)
            tokens = tokens.at[:, i].set(jnp.where(active, token, -1))
            logprobs = logprobs.at[:, i].set(select_logprobs(logits, token, temperature))
            ends = (token[:, None] == stop_ids).any(-1) | (at + 2 >= slots.length_limit)
            position = jnp.where(active & ~ends, slots.position + 1, -1)
            return i + 1, cache, slots.replace(token=token, position=position), tokens, logprobs

        def unfinished(carry):
            return (carry[0] < self.block_steps) & (carry[2].position >= 0).any()

        start = (jnp.int32(0), cache, slots, jnp.full(size, -1, jnp.int32), jnp.zeros(size, jnp.float32))
        _, cache, slots, tokens, logprobs = jax.lax.while_loop(unfinished, step, start)
        return cache, slots, tokens, logprobs
