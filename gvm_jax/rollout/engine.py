"""The rollout engine: n_i samples of each prompt i from a paged KV cache, decoded on the device in blocks of steps."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from gvm_jax.config import ConfigError
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.models.sharding import param_shardings, replicated
from gvm_jax.rollout.attention import table_width
from gvm_jax.rollout.pages import least_pages, pages_for
from gvm_jax.rollout.programs import Admission, Programs, Slots
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.rollout.scheduler import Scheduler


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Static settings; the fields of `config.rollout` under the same names.

    Raises:
      ConfigError: `pages` cannot hold one sequence of maximal length and its prompt.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    slots: int
    page_size: int
    pages: int = 0  # 0 = as many as the slots can ever need
    block_steps: int = 16
    prefill_batch: int = 8
    prefill_chunk: int = 128
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def from_config(cls, config) -> "RolloutSettings":
        """From a run's config (`configs/default.py`)."""
        fields = {f.name: config.rollout[f.name] for f in dataclasses.fields(cls) if f.name in config.rollout}
        return cls(max_prompt_tokens=config.data.max_prompt_tokens, **fields)

    def __post_init__(self):
        """Check `pages`."""
        least = least_pages(self.max_prompt_tokens, self.max_new_tokens, self.page_size)
        if self.pages and self.pages < least:
            raise ConfigError(
                f"rollout.pages = {self.pages}: cannot hold one sequence of data.max_prompt_tokens = "
                f"{self.max_prompt_tokens} + rollout.max_new_tokens = {self.max_new_tokens} tokens in pages of "
                f"{self.page_size}; give at least {least}, or 0 for as many as the slots can need"
            )

    @property
    def num_pages(self) -> int:
        """Pages of a layer, the trash page included."""
        sequence = pages_for(self.max_prompt_tokens + self.max_new_tokens - 1, self.page_size)
        prompt = pages_for(self.max_prompt_tokens - 1, self.page_size)
        return self.pages or 1 + self.slots * sequence + (self.slots + self.prefill_batch) * prompt


class RolloutEngine:
    """Samples prompts with a model. Knows tokens only; compiles its programs once."""

    def __init__(self, model: Model, mesh: Mesh, settings: RolloutSettings, stop_ids: Sequence[int]):
        self._model, self._settings, self._stop_ids = model, settings, frozenset(stop_ids)
        self._table_width = table_width(settings.max_prompt_tokens + settings.max_new_tokens, settings.page_size)
        programs = Programs(
            model,
            settings.num_pages,
            settings.block_steps,
            settings.top_p,
            settings.top_k,
            tuple(sorted(stop_ids)),
        )
        config = model.config
        kv_axis = "tensor" if config.num_key_value_heads % mesh.shape["tensor"] == 0 else None
        everywhere = replicated(mesh)
        cache = NamedSharding(mesh, PartitionSpec(None, None, kv_axis, None))
        shape = (
            config.num_hidden_layers * settings.num_pages,
            settings.page_size,
            2 * config.num_key_value_heads,
        )
        self._new_cache = jax.jit(lambda: jnp.zeros((*shape, config.head_dim), model.dtype), out_shardings=cache)
        self._idle_slots = jax.jit(lambda: Slots.idle(settings.slots, self._table_width), out_shardings=everywhere)
        self._cast = jax.jit(
            lambda params: jax.tree.map(lambda x: x.astype(model.dtype), params),
            out_shardings=param_shardings(model, mesh),
        )
        self._prefill = jax.jit(programs.prefill, donate_argnums=1, out_shardings=cache)
        self._admit = jax.jit(programs.admit, donate_argnums=(0, 1), out_shardings=(cache, everywhere))
        self._decode = jax.jit(
            programs.decode, donate_argnums=(1, 2), out_shardings=(cache, everywhere, everywhere, everywhere)
        )

    def sample(
        self,
        params: Params,
        prompts: Sequence[Int[np.ndarray, " P"]],
        prompt_ids: Int[np.ndarray, " m"],
        counts: Int[np.ndarray, " m"],
        key: Key[Array, ""],
        temperature: float,
        first_sample: int = 0,
        on_finished: Callable[[int, np.ndarray], None] = lambda row, response: None,
        check_interrupt: Callable[[], None] = lambda: None,
    ) -> Rollouts:
        """`counts[i]` samples of prompt i.

        A token is a function of (key, prompt id, sample index, position, temperature, params) alone: neither the
        order of the prompts nor the number of slots or pages changes it.

        Args:
          params: the training parameters; cast to the model's compute dtype here, on the device.
          prompts: token ids, at least 2 and at most `max_prompt_tokens` of them each.
          prompt_ids: distinct ids; part of each sample's key.
          counts: samples of each prompt, 0 allowed.
          key: of this call; a function of (seed, step).
          temperature: of the policy; 0 = greedy.
          first_sample: index of each prompt's first sample, for prompts that were sampled before with this key.
          on_finished: called with (row, response tokens) as soon as a sample ends, while others still decode.
          check_interrupt: called between blocks; may raise to give up.

        Returns:
          Rollouts as numpy arrays, rows ordered by prompt, then sample.
        """
        settings = self._settings
        self._check_prompts(prompts)
        rollouts = Rollouts.empty(list(prompts), counts, settings.max_prompt_tokens, settings.max_new_tokens)
        scheduler = Scheduler(
            prompts,
            counts,
            first_sample,
            settings.slots,
            settings.num_pages,
            settings.page_size,
            settings.max_new_tokens,
        )
        if self._model.dtype != jnp.float32:  # that of the parameters
            params = self._cast(params)
        cache, slots = self._new_cache(), self._idle_slots()
        while not scheduler.done:
            check_interrupt()
            while batch := scheduler.to_prefill(settings.prefill_batch):
                cache = self._prefill_prompts(params, cache, batch)
                if placements := scheduler.admit():
                    cache, slots = self._admit(cache, slots, self._admission(placements, prompts, prompt_ids), key)
            if placements := scheduler.admit():
                cache, slots = self._admit(cache, slots, self._admission(placements, prompts, prompt_ids), key)
            cache, slots, tokens, logprobs = self._decode(params, cache, slots, np.float32(temperature))
            tokens, logprobs, position = jax.device_get((tokens, logprobs, slots.position))
            for slot, placement in list(scheduler.running.items()):
                length = int((tokens[slot] >= 0).sum())
                rollouts.append(placement.row, tokens[slot, :length], logprobs[slot, :length])
                if position[slot] < 0:
                    rollouts.stopped[placement.row] = tokens[slot, length - 1] in self._stop_ids
                    scheduler.finish(slot)
                    on_finished(placement.row, rollouts.response(placement.row))
        return rollouts

    def _check_prompts(self, prompts) -> None:
        for i, tokens in enumerate(prompts):
            if not 2 <= len(tokens) <= self._settings.max_prompt_tokens:
                raise ValueError(
                    f"prompt {i} has {len(tokens)} tokens; 2 to data.max_prompt_tokens="
                    f"{self._settings.max_prompt_tokens} are allowed"
                )

    def _prefill_prompts(self, params, cache, batch):
        """All but the last token of each prompt, chunk by chunk; the last one is the samples' first input."""
        settings = self._settings
        longest = max(len(tokens) for _, tokens, _ in batch) - 1
        length = pages_for(longest, settings.prefill_chunk) * settings.prefill_chunk
        tokens = np.zeros((settings.prefill_batch, length), np.int32)
        positions = np.full_like(tokens, -1)
        tables = np.zeros((settings.prefill_batch, self._table_width), np.int32)
        for i, (_, prompt, pages) in enumerate(batch):
            tokens[i, : len(prompt) - 1] = prompt[:-1]
            positions[i, : len(prompt) - 1] = np.arange(len(prompt) - 1)
            tables[i, : len(pages)] = pages
        for begin in range(0, length, settings.prefill_chunk):
            chunk = slice(begin, begin + settings.prefill_chunk)
            cache = self._prefill(params, cache, tokens[:, chunk], positions[:, chunk], tables)
        return cache

    def _admission(self, placements, prompts, prompt_ids) -> Admission:
        size = self._settings.slots
        fields = {f.name: np.zeros(size, np.int32) for f in dataclasses.fields(Admission)}
        new = Admission(**fields).replace(
            taken=np.zeros(size, bool), page_table=np.zeros((size, self._table_width), np.int32)
        )
        for place in placements:
            prompt = prompts[place.group]
            new.taken[place.slot] = True
            new.token[place.slot] = prompt[-1]
            new.position[place.slot] = len(prompt) - 1
            new.length_limit[place.slot] = len(prompt) + self._settings.max_new_tokens
            new.prompt_id[place.slot] = prompt_ids[place.group]
            new.sample[place.slot] = place.sample
            new.page_table[place.slot, : len(place.pages)] = place.pages
            new.copy_from[place.slot] = place.copy_from
            new.copy_to[place.slot] = place.copy_to
        return new
