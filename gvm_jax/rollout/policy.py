"""Sampling with one set of parameters: continuous batching of n_i samples of each prompt i, in blocks of steps."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gvm_jax.models.qwen2 import Params
from gvm_jax.rollout.inputs import make_batch, make_calls, make_copies, stack
from gvm_jax.rollout.programs import CompiledPrograms
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
        """Of both calls."""
        names = [f.name for f in dataclasses.fields(self)]
        return SampleStats(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Policy:
    """Parameters in the rollouts' layout, with the KV cache that they fill. Drop it to free both."""

    def __init__(self, programs: CompiledPrograms, params: Params):
        self._programs, self._params, self._cache = programs, params, None
        self.stats = SampleStats()  # of the last call

    def start(self, key: Key[Array, ""], temperature: float) -> "Sampling":
        """An empty call: `request` samples of it, `advance` it until it is `done`. One at a time."""
        return Sampling(self, key, temperature)

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
        sampling = self.start(key, temperature)
        expected = expected_lengths if expected_lengths is not None else np.zeros(len(prompts))
        first_samples = np.broadcast_to(first_sample, len(prompts))
        for i, tokens in enumerate(prompts):
            sampling.request(tokens, int(prompt_ids[i]), int(counts[i]), int(first_samples[i]), float(expected[i]))
        while not sampling.done:
            check_interrupt()
            for row in sampling.advance():
                on_finished(row, sampling.response(row))
        return sampling.rollouts()


@dataclasses.dataclass
class _Block:
    """A block of decode steps that was handed to the device."""

    slots: list[Int[np.ndarray, " n"]]  # of each replica
    tokens: Int[Array, "R S K"]
    logprobs: Float[Array, "R S K"]


class Sampling:
    """Samples in flight; more may be requested at any time.

    While the device decodes a block, the caller treats the samples that ended in the block before. The device waits
    for the host only from the end of a block to the start of the next: to read its tokens and to place samples.
    """

    def __init__(self, policy: Policy, key: Key[Array, ""], temperature: float):
        self._policy, self._programs, self._key = policy, policy._programs, key
        self._temperature = np.float32(temperature)
        settings = self._programs.settings
        self._samples = Samples(settings.max_new_tokens)
        sizes = settings.slots, settings.num_pages, settings.page_size, settings.max_tokens, settings.block_steps
        self._replicas = Replicas([Scheduler(self._samples, *sizes) for _ in range(self._programs.replicas)])
        self._prompts: list[np.ndarray] = []
        self._group: list[int] = []  # of each row
        self._block: _Block | None = None
        # Taken away while in use: a call that was given up leaves a cache behind that nobody reads.
        cache, policy._cache = policy._cache, None
        self._cache = self._programs.new_cache() if cache is None else cache
        self.stats = policy.stats = SampleStats()
        self._started = self._ready = time.perf_counter()

    def request(
        self,
        tokens: Int[np.ndarray, " P"],
        prompt_id: int,
        count: int,
        first_sample: int = 0,
        expected_length: float = 0.0,
    ) -> range:
        """Asks for `count` samples of a prompt; returns their rows. Arguments as for `Policy.sample`."""
        most = self._programs.settings.max_prompt_tokens
        if not 2 <= len(tokens) <= most:
            raise ValueError(
                f"prompt {len(self._prompts)} has {len(tokens)} tokens; 2 to data.max_prompt_tokens={most} are allowed"
            )
        tokens, vocab_size = np.asarray(tokens, np.int32), self._programs.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocab_size:  # on the device they would be other tokens
            raise ValueError(
                f"prompt {len(self._prompts)} has the token ids {tokens.min()} to {tokens.max()}; those of the model's "
                f"embedding table are 0 to {vocab_size - 1}"
            )
        self._group.extend([len(self._prompts)] * count)
        self._prompts.append(tokens)
        rows = self._samples.add(count)
        self._replicas.request(Request(tokens, prompt_id, rows, first_sample, expected_length))
        return rows

    @property
    def done(self) -> bool:
        """Every sample requested so far has ended and was returned by `advance`."""
        return self._block is None and self._replicas.done

    def advance(self) -> list[int]:
        """Waits for the block in flight, starts the next, and returns the rows that ended."""
        ended = self._collect()
        if not self._replicas.done:
            self._dispatch()
        else:
            self._policy._cache = self._cache
        return ended

    def response(self, row: int) -> Int[np.ndarray, " n"]:
        """The response tokens of a row so far."""
        return self._samples.response(row)

    def rollouts(self) -> Rollouts:
        """All rows, in the order of their requests."""
        return self._samples.rollouts(
            self._prompts, np.array(self._group, np.int32), self._programs.settings.max_prompt_tokens
        )

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
            stopped = np.isin(last, self._programs.stop_ids)
            ended = stopped | (self._samples.lengths[rows] == self._samples.max_response)
            self._samples.stopped[rows] = stopped
            scheduler.advance(slots, steps, last, ended)
            self.stats.sampled_tokens += int(steps.sum())
            ended_rows += rows[ended].tolist()
        return ended_rows

    def _dispatch(self) -> None:
        programs, settings = self._programs, self._programs.settings
        self._policy._cache = None
        plans = self._replicas.plan(PREFILL_CHUNK, settings.prefill_tokens)
        self.stats.preemptions = self._replicas.preemptions
        if any(plan.chunks for plan in plans):
            self._compute([plan.chunks for plan in plans])
        if any(plan.copy_to for plan in plans):
            source, target = stack([make_copies(plan, settings) for plan in plans])
            self._cache = programs.copy_pages(self._cache, source, target)
        widest = max(len(plan.slots) for plan in plans)
        width = next(width for width in settings.widths if width >= widest)
        batches = [
            make_batch(scheduler, plan.slots, width, settings)
            for scheduler, plan in zip(self._replicas.schedulers, plans, strict=True)
        ]
        self._cache, tokens, logprobs = programs.decode[width](
            self._policy._params, self._cache, stack(batches), self._key, self._temperature
        )
        self._block = _Block([plan.slots for plan in plans], tokens, logprobs)
        now = time.perf_counter()
        self.stats.idle_seconds += now - self._ready
        self.stats.decode_blocks += 1
        self._ready = now

    def _compute(self, chunks: Sequence[list[PrefillChunk]]) -> None:
        """Computes the chunks of each replica, in as many calls as the busiest needs."""
        begin = time.perf_counter()
        self.stats.idle_seconds += begin - self._ready
        calls = [make_calls(of_replica, self._programs.settings) for of_replica in chunks]
        (nothing,) = make_calls([], self._programs.settings)
        for turn in itertools.zip_longest(*calls, fillvalue=nothing):
            call = stack(turn)
            self._cache = self._programs.prefill(self._policy._params, self._cache, *call)
            self.stats.prefill_rows += call[0].size
        jax.block_until_ready(self._cache)
        self._ready = time.perf_counter()
        self.stats.prefill_seconds += self._ready - begin
        self.stats.prefill_tokens += sum(len(chunk.tokens) for of_replica in chunks for chunk in of_replica)
