"""Sampling with one set of parameters: continuous batching of n_i samples of each prompt i, in blocks of steps."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gvm_jax.models.qwen2 import Params
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.inputs import make_batch, make_calls, make_copies, stack
from gvm_jax.rollout.replicas import Replicas
from gvm_jax.rollout.rollouts import Rollouts, Samples
from gvm_jax.rollout.scheduler import PrefillChunk, Request, Scheduler
from gvm_jax.rollout.settings import PREFILL_CHUNK


@dataclasses.dataclass
class SampleStats:
    """What one call did and where its seconds went."""

    seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    idle_seconds: float = 0.0  # the device waited for the host
    prefill_tokens: int = 0  # tokens whose keys and values were computed before decoding
    prefill_rows: int = 0  # tokens that these calls computed, padding included
    decode_blocks: int = 0
    sampled_tokens: int = 0
    preemptions: int = 0  # samples that lost their pages and were computed again

    def __add__(self, other: "SampleStats") -> "SampleStats":
        names = [f.name for f in dataclasses.fields(self)]
        return SampleStats(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Policy:
    """Parameters in the rollouts' layout, with the KV cache that they fill. Drop it to free both.

    Args:
      engine: compiled at the first policy.
      params: float32, as training holds them.

    Attributes:
      stats: of the last call of `sample`, also while it goes on.
    """

    def __init__(self, engine: RolloutEngine, params: Params):
        self._engine, self._params, self._cache = engine, engine.place(params), None
        self.stats = SampleStats()

    def sample(
        self,
        prompts: Sequence[Int[np.ndarray, " P"]],
        prompt_ids: Int[np.ndarray, " m"],
        counts: Int[np.ndarray, " m"],
        key: Key[Array, ""],
        temperature: float,
        first_sample: int | Int[np.ndarray, " m"] = 0,
        expected_lengths: Sequence[float] | None = None,
        on_finished: Callable[[int, np.ndarray], None] = lambda row, response: None,
        check_interrupt: Callable[[], None] = lambda: None,
    ) -> Rollouts:
        """`counts[i]` samples of prompt i.

        A token is a function of (key, prompt id, sample index, position, temperature, params) alone: neither the
        order of the prompts nor the number of slots or pages changes it.

        While the devices decode a block, the caller treats the samples that ended in the block before. The devices
        wait for the host only from the end of a block to the start of the next: to read its tokens and place samples.

        Args:
          prompts: token ids, at least 2 and at most `max_prompt_tokens` of them each.
          prompt_ids: part of each sample's key; an id may come twice for different samples of it.
          counts: samples of each prompt, 0 allowed.
          key: of this call; a function of (seed, step).
          temperature: of the policy; 0 = greedy.
          first_sample: index of each prompt's first sample, for prompts that were sampled before with this key.
          expected_lengths: response tokens to expect of each prompt; the longest start first. None = all alike.
          on_finished: called with (row, response tokens) as soon as a sample ends, while others still decode.
          check_interrupt: called between blocks; may raise to give up.

        Returns:
          Rollouts as numpy arrays, rows ordered by prompt, then sample.
        """
        for number, tokens in enumerate(prompts):
            self._check_prompt(number, np.asarray(tokens))
        settings, samples = self._engine.settings, Samples(self._engine.settings.max_new_tokens)
        sizes = settings.slots, settings.num_pages, settings.page_size, settings.max_tokens, settings.block_steps
        replicas = Replicas([Scheduler(samples, *sizes) for _ in range(self._engine.replicas)])
        expected = expected_lengths if expected_lengths is not None else np.zeros(len(prompts))
        first_samples = np.broadcast_to(first_sample, len(prompts))
        for i, tokens in enumerate(prompts):
            rows = samples.add(int(counts[i]))
            request = Request(
                np.asarray(tokens, np.int32), int(prompt_ids[i]), rows, int(first_samples[i]), float(expected[i])
            )
            replicas.request(request)
        # Taken away while in use: a call that is given up leaves a cache behind that nobody reads.
        cache, self._cache = self._cache, None
        call = _Call(self._engine, self._params, key, np.float32(temperature), samples, replicas, cache)
        self.stats = call.stats
        while not call.done:
            check_interrupt()
            for row in call.advance():
                on_finished(row, samples.response(row))
        self._cache = call.cache
        group = np.repeat(np.arange(len(prompts), dtype=np.int32), counts)
        return samples.rollouts(prompts, group, settings.max_prompt_tokens)

    def _check_prompt(self, number: int, tokens: Int[np.ndarray, " P"]) -> None:
        most, vocab_size = self._engine.settings.max_prompt_tokens, self._engine.vocab_size
        if not 2 <= len(tokens) <= most:
            raise ValueError(
                f"prompt {number} has {len(tokens)} tokens; 2 to data.max_prompt_tokens={most} are allowed"
            )
        if tokens.min() < 0 or tokens.max() >= vocab_size:  # on the device they would be other tokens
            raise ValueError(
                f"prompt {number} has the token ids {tokens.min()} to {tokens.max()}; those of the model's embedding "
                f"table are 0 to {vocab_size - 1}"
            )


@dataclasses.dataclass
class _Block:
    """A block of decode steps in flight on the devices."""

    slots: list[Int[np.ndarray, " n"]]  # of each replica
    tokens: Int[Array, "R S K"]
    logprobs: Float[Array, "R S K"]


class _Call:
    """One call of `Policy.sample` under way: at most one block is in flight."""

    def __init__(
        self,
        engine: RolloutEngine,
        params: Params,
        key: Key[Array, ""],
        temperature: np.float32,
        samples: Samples,
        replicas: Replicas,
        cache: Any,
    ):
        self._engine, self._params, self._key, self._temperature = engine, params, key, temperature
        self._samples, self._replicas = samples, replicas
        self.cache = engine.new_cache() if cache is None else cache
        self.stats = SampleStats()
        self._block: _Block | None = None
        self._started = self._ready = time.perf_counter()

    @property
    def done(self) -> bool:
        return self._block is None and self._replicas.done

    def advance(self) -> list[int]:
        """Waits for the block in flight, starts the next, and returns the rows that ended."""
        ended = self._collect()
        if not self._replicas.done:
            self._dispatch()
        return ended

    def _collect(self) -> list[int]:
        if self._block is None:
            return []
        block, self._block = self._block, None
        tokens, logprobs = jax.device_get((block.tokens, block.logprobs))
        now = time.perf_counter()
        self.stats.decode_seconds += now - self._ready
        self.stats.seconds = now - self._started
        self._ready = now
        ended_rows = []
        for scheduler, slots, its_tokens, its_logprobs in zip(
            self._replicas.schedulers, block.slots, tokens, logprobs, strict=True
        ):
            count, rows = len(slots), scheduler.row[slots]
            steps = self._samples.append(rows, its_tokens[:count], its_logprobs[:count])
            last = its_tokens[np.arange(count), steps - 1]
            stopped = np.isin(last, self._engine.stop_ids)
            ended = stopped | (self._samples.lengths[rows] == self._samples.max_response)
            self._samples.stopped[rows] = stopped
            scheduler.advance(slots, steps, last, ended)
            self.stats.sampled_tokens += int(steps.sum())
            ended_rows += rows[ended].tolist()
        return ended_rows

    def _dispatch(self) -> None:
        settings, compiled = self._engine.settings, self._engine.compiled
        plans = self._replicas.plan(PREFILL_CHUNK, settings.prefill_tokens)
        self.stats.preemptions = self._replicas.preemptions
        if any(plan.chunks for plan in plans):
            self._prefill([plan.chunks for plan in plans])
        if any(plan.copy_to for plan in plans):
            source, target = stack([make_copies(plan, settings) for plan in plans])
            self.cache = compiled["copy pages"](self.cache, source, target)
        widest = max(len(plan.slots) for plan in plans)
        width = next(width for width in settings.widths if width >= widest)
        batches = [
            make_batch(scheduler, plan.slots, width, settings)
            for scheduler, plan in zip(self._replicas.schedulers, plans, strict=True)
        ]
        self.cache, tokens, logprobs = compiled[f"decode {width}"](
            self._params, self.cache, stack(batches), self._key, self._temperature
        )
        self._block = _Block([plan.slots for plan in plans], tokens, logprobs)
        now = time.perf_counter()
        self.stats.idle_seconds += now - self._ready
        self.stats.decode_blocks += 1
        self._ready = now

    def _prefill(self, chunks: Sequence[list[PrefillChunk]]) -> None:
        """Computes the chunks of each replica, in as many calls as the busiest needs."""
        begin = time.perf_counter()
        self.stats.idle_seconds += begin - self._ready
        calls = [make_calls(of_replica, self._engine.settings) for of_replica in chunks]
        (nothing,) = make_calls([], self._engine.settings)
        for turn in itertools.zip_longest(*calls, fillvalue=nothing):
            call = stack(turn)
            self.cache = self._engine.compiled["prefill"](self._params, self.cache, *call)
            self.stats.prefill_rows += call[0].size
        jax.block_until_ready(self.cache)
        self._ready = time.perf_counter()
        self.stats.prefill_seconds += self._ready - begin
        self.stats.prefill_tokens += sum(len(chunk.tokens) for of_replica in chunks for chunk in of_replica)
