"""The rollout engine: n_i samples of each prompt i from a paged KV cache, decoded on the device in blocks of steps."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from gvm_jax.config import ConfigError
from gvm_jax.models.quantize import quantize
from gvm_jax.models.qwen2 import Model, Params, unstack
from gvm_jax.models.sharding import param_shardings, replicated
from gvm_jax.rollout.attention import PagedAttention, make_tiles, resolve_attention
from gvm_jax.rollout.pages import TRASH_PAGE, least_pages, pages_for
from gvm_jax.rollout.programs import Batch, Programs
from gvm_jax.rollout.replicas import Replicas
from gvm_jax.rollout.rollouts import Rollouts, Samples
from gvm_jax.rollout.scheduler import Piece, Plan, Request, Scheduler
from gvm_jax.runtime.mesh import compiler_options, local_mesh, on_local_mesh, replica_mesh

PIECE = 32  # prompt tokens in a row of a prefill call; a prompt's last piece is the only padding


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
    block_steps: int = 8
    prefill_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0
    attention: str = "auto"
    weight_dtype: str = "compute"
    tensor: int = 0  # devices of a replica; 0 = the mesh's tensor axis

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
    def max_tokens(self) -> int:
        """The longest sequence."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def num_pages(self) -> int:
        """Pages of a layer, the trash page included."""
        sequence = least_pages(self.max_prompt_tokens, self.max_new_tokens, self.page_size) - 1
        ahead = pages_for(self.prefill_tokens, PIECE) + pages_for(self.prefill_tokens, self.page_size)
        return self.pages or 1 + self.slots * sequence + ahead

    @property
    def widths(self) -> list[int]:
        """Batch sizes that the decode program is compiled for: as samples run out, fewer rows decode."""
        halves = [self.slots // 2**i for i in range(1, 4)]
        return sorted({self.slots, *(width for width in halves if width >= 8)})


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


class RolloutEngine:
    """Samples prompts with a model. Knows tokens only; compiles its programs once, at the first `load`.

    The mesh's devices are dealt to replicas of `settings.tensor` devices; each holds the whole model, and slots and
    pages of its own. A process samples on its own replicas alone. They run one program, which differs between them in
    their sequences only, not in shapes.
    """

    def __init__(self, model: Model, mesh: Mesh, settings: RolloutSettings, stop_ids: Sequence[int]):
        self.settings, self.stop_ids = settings, np.array(sorted(stop_ids), np.int32)
        self.stats = SampleStats()  # of the last call
        platform = mesh.devices.flat[0].platform
        int8 = settings.weight_dtype == "int8"
        self._own_layout = int8 or model.dtype != jnp.float32  # float32 is that of the training parameters
        # XLA's CPU backend copies a layer's slice of a stack before it multiplies: apart, they are read in place.
        unstacked = self._own_layout and platform == "cpu"

        def convert(params):
            params = quantize(params) if int8 else jax.tree.map(lambda x: x.astype(model.dtype), params)
            return unstack(params) if unstacked else params

        training_mesh, all_replicas = mesh, replica_mesh(mesh, settings.tensor or mesh.shape["tensor"])
        self._mesh = mesh = local_mesh(all_replicas)
        self.replicas = mesh.shape["data"]
        self._model = Model(model.config, model.dtype, stacked=not unstacked, weight_dtype="int8" if int8 else None)
        self._shardings = param_shardings(self._model, mesh)
        self._shardings_everywhere = param_shardings(self._model, all_replicas)
        # Of devices in another order no program can make its results: they are moved after it.
        in_order = list(all_replicas.devices.flat) == list(training_mesh.devices.flat)
        self._to_own_layout = jax.jit(convert, out_shardings=self._shardings_everywhere if in_order else None)
        self._params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(convert, model.abstract_params), self._shardings,
        )  # fmt: skip
        self.kernels = resolve_attention(settings.attention, platform)
        self._attention = PagedAttention(self.kernels, settings.num_pages, mesh)
        config = model.config
        kv_axis = "tensor" if config.num_key_value_heads % mesh.shape["tensor"] == 0 else None
        shape = (config.num_hidden_layers * settings.num_pages, settings.page_size, 2 * config.num_key_value_heads)
        self._cache = jax.ShapeDtypeStruct(
            (self.replicas, *shape, self._attention.cache_head_dim(config.head_dim)),
            model.dtype,
            sharding=NamedSharding(mesh, PartitionSpec("data", None, None, kv_axis, None)),
        )
        self._decode: dict[int, Callable] = {}  # by width

    @property
    def weight_dtype(self) -> str:
        """The number format that the policy's matrices are held in."""
        return "int8" if self.settings.weight_dtype == "int8" else self._model.dtype.name

    @property
    def cache_bytes(self) -> int:
        """Size of this process's KV cache: replicas · layers · pages · page size · 2 · kv heads · head dim · bytes."""
        return self._cache.size * self._cache.dtype.itemsize

    @property
    def abstract_policy(self) -> dict[str, object]:
        """Shapes, dtypes and shardings of what a `Policy` holds; no weights where they are the training's own."""
        return {"weights": self._params if self._own_layout else {}, "cache": self._cache}

    def load(self, params: Params) -> "Policy":
        """The training parameters in the rollouts' layout and compute dtype, converted on the device.

        Where both are the training's own, no copy is made.
        """
        if not self._decode:
            self._compile()
        if self._own_layout:
            params = self._to_own_layout(params)
        params = jax.device_put(params, self._shardings_everywhere)
        return Policy(self, jax.tree.map(on_local_mesh, params, self._shardings))

    def sample(self, params: Params, *args, **kwargs) -> Rollouts:
        """`load(params).sample(...)`, for a single call with these parameters."""
        return self.load(params).sample(*args, **kwargs)

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """Every program that sampling runs, by name, for the shapes that it runs them with; "decode 64" is 64 wide."""
        settings, everywhere = self.settings, replicated(self._mesh)
        programs = Programs(
            self._model,
            self._attention,
            settings.block_steps,
            settings.top_p,
            settings.top_k,
            tuple(self.stop_ids.tolist()),
        )

        everywhere, by_replica = replicated(self._mesh), NamedSharding(self._mesh, PartitionSpec("data"))
        cache = self._cache.sharding

        def abstract(x, sharding=everywhere):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        def of_replicas(x):
            return jax.tree.map(lambda x: abstract(x, by_replica), self._stack([x] * self.replicas))

        key = abstract(jax.eval_shape(lambda: jax.random.key(0)))
        temperature = abstract(np.float32(0))
        jit = functools.partial(jax.jit, compiler_options=compiler_options(self._mesh))
        prefill = jit(self._on_replicas(programs.prefill, common=[0]), donate_argnums=1, out_shardings=cache)
        copy = jit(self._on_replicas(programs.copy_pages), donate_argnums=0, out_shardings=cache)
        results = cache, by_replica, by_replica
        decode = jit(self._on_replicas(programs.decode, common=[0, 3, 4]), donate_argnums=1, out_shardings=results)
        pages = of_replicas(np.zeros(settings.slots, np.int32))
        lowered = {
            "prefill": prefill.lower(self._params, self._cache, *of_replicas(self._pieces([])[0])),
            "copy pages": copy.lower(self._cache, pages, pages),
        }
        idle = Scheduler(Samples(1), settings.slots, 1, settings.page_size, settings.max_tokens, 1)
        for width in settings.widths:
            batch = of_replicas(self._batch(idle, np.zeros(0, np.int32), width))
            lowered[f"decode {width}"] = decode.lower(self._params, self._cache, batch, key, temperature)
        return lowered

    def _compile(self) -> None:
        sharding = self._cache.sharding
        self._new_cache = jax.jit(lambda: jnp.zeros(self._cache.shape, self._cache.dtype), out_shardings=sharding)
        compiled = {name: lowered.compile() for name, lowered in self.lower().items()}
        self._prefill, self._copy = compiled["prefill"], compiled["copy pages"]
        self._decode = {width: compiled[f"decode {width}"] for width in self.settings.widths}

    def _on_replicas(self, program: Callable, common: Sequence[int] = ()) -> Callable:
        """The program on every replica: arguments and results have the replica as first axis, but for `common` ones."""

        def of_one(*args):
            args = [
                arg if i in common else jax.tree.map(lambda x: x.reshape(x.shape[1:]), arg)
                for i, arg in enumerate(args)
            ]
            return jax.tree.map(lambda x: x[None], program(*args))

        def of_all(*args):
            specs = tuple(PartitionSpec() if i in common else PartitionSpec("data") for i in range(len(args)))
            return jax.shard_map(
                of_one, mesh=self._mesh, axis_names={"data"}, in_specs=specs, out_specs=PartitionSpec("data"),
                check_vma=False,
            )(*args)  # fmt: skip

        return of_all

    @staticmethod
    def _stack(trees: Sequence):
        """One tree of host arrays from those of all replicas."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def _pieces(self, pieces) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Tokens, positions and page tables of prefill calls: rows of `PIECE` tokens, from any sequences."""
        settings = self.settings
        rows = pages_for(settings.prefill_tokens, PIECE)
        tokens, positions, tables = [], [], []
        for piece in pieces:
            for begin in range(0, len(piece.tokens), PIECE):
                part = piece.tokens[begin : begin + PIECE]
                tokens.append(np.pad(part, (0, PIECE - len(part))))
                at = piece.begin + begin + np.arange(PIECE)
                positions.append(np.where(np.arange(PIECE) < len(part), at, -1))
                tables.append(piece.pages)
        calls = []
        for begin in range(0, max(len(tokens), 1), rows):
            call = np.zeros((rows, PIECE), np.int32), np.full((rows, PIECE), -1, np.int32)
            # A kernel may take a short piece for a whole one: its table reaches as far.
            table = np.full((rows, pages_for(settings.max_tokens + PIECE, settings.page_size)), TRASH_PAGE, np.int32)
            for i in range(len(tokens[begin : begin + rows])):
                call[0][i], call[1][i] = tokens[begin + i], positions[begin + i]
                table[i, : len(tables[begin + i])] = tables[begin + i]
            calls.append((*call, table))
        return calls

    def _batch(self, scheduler: Scheduler, slots: Int[np.ndarray, " n"], width: int) -> Batch:
        """The slots' sequences in this order, filled up with idle rows."""
        idle = width - len(slots)

        def column(values, fill=0):
            return np.pad(np.asarray(values, np.int32), (0, idle), constant_values=fill)

        groups = [scheduler.prompt(slot) for slot in slots]
        shared = column([group.cached for group in groups])
        prompt_tables = np.full(
            (width, pages_for(self.settings.max_prompt_tokens - 1, self.settings.page_size)), TRASH_PAGE, np.int32
        )
        for i, group in enumerate(groups):
            prompt_tables[i, : len(group.pages)] = group.pages
        return Batch(
            token=column(scheduler.token[slots]),
            position=column(scheduler.position[slots], -1),
            limit=column(scheduler.limit[slots]),
            prompt_id=column([group.prompt_id for group in groups]),
            sample=column(scheduler.sample[slots]),
            page_table=np.pad(scheduler.page_table[slots], ((0, idle), (0, 0)), constant_values=TRASH_PAGE),
            shared=shared,
            tiles=make_tiles(column(scheduler.group[slots], -1), prompt_tables, shared),
        )


class Policy:
    """Parameters in the rollouts' layout, with the KV cache that they fill. Drop it to free both."""

    def __init__(self, engine: RolloutEngine, params: Params):
        self.engine, self._params, self._cache = engine, params, None

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
          prompt_ids: distinct ids; part of each sample's key.
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
        self._policy, self._engine, self._key = policy, policy.engine, key
        self._temperature = np.float32(temperature)
        settings = self._engine.settings
        self._samples = Samples(settings.max_new_tokens)
        sizes = settings.slots, settings.num_pages, settings.page_size, settings.max_tokens, settings.block_steps
        self._replicas = Replicas([Scheduler(self._samples, *sizes) for _ in range(self._engine.replicas)])
        self._prompts: list[np.ndarray] = []
        self._group: list[int] = []  # of each row
        self._block: _Block | None = None
        # Taken away while in use: a call that was given up leaves a cache behind that nobody reads.
        cache, policy._cache = policy._cache, None
        self._cache = self._engine._new_cache() if cache is None else cache
        self.stats = self._engine.stats = SampleStats()
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
        most = self._engine.settings.max_prompt_tokens
        if not 2 <= len(tokens) <= most:
            raise ValueError(
                f"prompt {len(self._prompts)} has {len(tokens)} tokens; 2 to data.max_prompt_tokens={most} are allowed"
            )
        tokens = np.asarray(tokens, np.int32)
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
            self._prompts, np.array(self._group, np.int32), self._engine.settings.max_prompt_tokens
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
            stopped = np.isin(last, self._engine.stop_ids)
            ended = stopped | (self._samples.lengths[rows] == self._samples.max_response)
            self._samples.stopped[rows] = stopped
            scheduler.advance(slots, steps, last, ended)
            self.stats.sampled_tokens += int(steps.sum())
            ended_rows += rows[ended].tolist()
        return ended_rows

    def _dispatch(self) -> None:
        engine, settings = self._engine, self._engine.settings
        self._policy._cache = None
        plans = self._replicas.plan(PIECE, settings.prefill_tokens)
        self.stats.preemptions = self._replicas.preemptions
        if any(plan.pieces for plan in plans):
            self._compute([plan.pieces for plan in plans])
        if any(plan.copy_to for plan in plans):
            source, target = engine._stack([self._copies(plan) for plan in plans])
            self._cache = engine._copy(self._cache, source, target)
        widest = max(len(plan.slots) for plan in plans)
        width = next(width for width in settings.widths if width >= widest)
        schedulers = self._replicas.schedulers
        batches = [engine._batch(*of_one, width) for of_one in zip(schedulers, [p.slots for p in plans], strict=True)]
        self._cache, tokens, logprobs = engine._decode[width](
            self._policy._params, self._cache, engine._stack(batches), self._key, self._temperature
        )
        self._block = _Block([plan.slots for plan in plans], tokens, logprobs)
        now = time.perf_counter()
        self.stats.idle_seconds += now - self._ready
        self.stats.decode_blocks += 1
        self._ready = now

    def _copies(self, plan: Plan) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
        """Pages to copy from and to; unused entries copy the trash page to itself."""
        pad = self._engine.settings.slots - len(plan.copy_to)
        source, target = (
            np.pad(np.array(pages, np.int32), (0, pad), constant_values=TRASH_PAGE)
            for pages in (plan.copy_from, plan.copy_to)
        )
        return source, target

    def _compute(self, pieces: Sequence[list[Piece]]) -> None:
        """Computes the pieces of each replica, in as many calls as the busiest needs."""
        begin = time.perf_counter()
        self.stats.idle_seconds += begin - self._ready
        calls = [self._engine._pieces(of_replica) for of_replica in pieces]
        (nothing,) = self._engine._pieces([])
        for turn in itertools.zip_longest(*calls, fillvalue=nothing):
            call = self._engine._stack(turn)
            self._cache = self._engine._prefill(self._policy._params, self._cache, *call)
            self.stats.prefill_rows += call[0].size
        jax.block_until_ready(self._cache)
        self._ready = time.perf_counter()
        self.stats.prefill_seconds += self._ready - begin
        self.stats.prefill_tokens += sum(len(piece.tokens) for of_replica in pieces for piece in of_replica)
