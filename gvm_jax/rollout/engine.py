"""The rollout engine: a mesh's replicas of the model, and the compiled functions by which they sample."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gvm_jax.models.quantize import quantize
from gvm_jax.models.qwen2 import Model, Params, Qwen2, UnstackedQwen2
from gvm_jax.models.sharding import check_axes, divisor, param_shardings, replicated
from gvm_jax.rollout import device
from gvm_jax.rollout.inputs import make_batch, make_calls, stack
from gvm_jax.rollout.paged_attention import PagedAttention, resolve_attention
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.rollout.scheduler import Scheduler
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime import cpu
from gvm_jax.runtime.mesh import local_mesh, on_local_mesh, replica_mesh


class RolloutEngine:
    """Samples prompts with a model. Knows tokens only; compiles its functions once.

    The mesh's devices are dealt to replicas of `settings.tensor` devices; each holds the whole model, and slots and
    pages of its own. A process samples on its own replicas alone. They run one program, which differs between them in
    their sequences only, not in shapes.

    Attributes:
      settings: lengths, slots, pages and cuts.
      stop_ids: int32 ids that end a response.
      vocab_size: rows of the embedding table.
      replicas: of this process.
      kernels: the attention that runs, a name of `rollout.attention`.
    """

    def __init__(self, model: Model, mesh: Mesh, settings: RolloutSettings, stop_ids: Sequence[int]):
        self.settings, self.stop_ids = settings, np.array(sorted(stop_ids), np.int32)
        self.vocab_size = model.config.vocab_size
        platform = mesh.devices.flat[0].platform
        int8 = settings.weight_dtype == "int8"
        self._own_layout = int8 or model.dtype != jnp.float32  # float32 is that of the training parameters
        unstacked = self._own_layout and platform == "cpu"  # `runtime/cpu.py` says why

        def convert(params):
            params = quantize(params) if int8 else jax.tree.map(lambda x: x.astype(model.dtype), params)
            return cpu.unstack(params) if unstacked else params

        check_axes(model, mesh.shape)  # before the replicas, whose size is the mesh's own where it is not set
        tensor = settings.tensor or mesh.shape["tensor"]
        training_mesh, all_replicas = mesh, replica_mesh(mesh, tensor, divisor(model, "tensor"))
        self._mesh = mesh = local_mesh(all_replicas)
        self.replicas = mesh.shape["data"]
        network = UnstackedQwen2 if unstacked else Qwen2
        self._model = Model(model.config, model.dtype, weight_dtype="int8" if int8 else None, network=network)
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

    @property
    def weight_dtype(self) -> str:
        """The number format of the policy's matrices."""
        return "int8" if self.settings.weight_dtype == "int8" else self._model.dtype.name

    @property
    def cache_bytes(self) -> int:
        """Size of this process's KV cache: replicas · layers · pages · page size · 2 · kv heads · head dim · bytes."""
        return self._cache.size * self._cache.dtype.itemsize

    @property
    def abstract_policy(self) -> dict[str, object]:
        """Shapes, dtypes and shardings of what a `Policy` holds; no weights where they are the training's own."""
        return {"weights": self._params if self._own_layout else {}, "cache": self._cache}

    def place(self, params: Params) -> Params:
        """The training parameters in the rollouts' layout and compute dtype, converted on the device.

        Where both are the training's own, no copy is made.
        """
        _ = self.compiled  # before another copy of the weights takes memory
        if self._own_layout:
            params = self._to_own_layout(params)
        params = jax.device_put(params, self._shardings_everywhere)
        return jax.tree.map(on_local_mesh, params, self._shardings)

    def new_cache(self) -> jax.Array:
        """An empty KV cache for all replicas of this process."""
        return self._zeros()

    @functools.cached_property
    def _zeros(self) -> Callable[[], jax.Array]:
        return jax.jit(lambda: jnp.zeros(self._cache.shape, self._cache.dtype), out_shardings=self._cache.sharding)

    @functools.cached_property
    def compiled(self) -> dict[str, Callable]:
        """The functions of `lower`, compiled when they are first asked for; all donate the cache.

        "prefill" and "decode WIDTH" are called with parameters, cache and a call's arrays, "copy pages" without the
        parameters. Arrays and results have the replica as first axis, but for parameters, key and temperature.
        """
        return {name: lowered.compile() for name, lowered in self.lower().items()}

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """Every function that sampling runs, by name, for the shapes that it has; "decode 64" is 64 sequences wide."""
        settings, model, attention = self.settings, self._model, self._attention
        everywhere, by_replica = replicated(self._mesh), NamedSharding(self._mesh, PartitionSpec("data"))
        cache = self._cache.sharding

        def abstract(x, sharding=everywhere):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        def of_replicas(x):
            return jax.tree.map(lambda x: abstract(x, by_replica), stack([x] * self.replicas))

        def jit(function, static, common, donate, out):
            of_all = self._on_replicas(functools.partial(function, *static), common)
            options = cpu.compiler_options(self._mesh)
            return jax.jit(of_all, compiler_options=options, donate_argnums=donate, out_shardings=out)

        key = abstract(jax.eval_shape(lambda: jax.random.key(0)))
        temperature = abstract(np.float32(0))
        prefill = jit(device.prefill, (model, attention), common=[0], donate=1, out=cache)
        copy = jit(device.copy_pages, (settings.num_pages,), common=[], donate=0, out=cache)
        static = model, attention, settings, tuple(self.stop_ids.tolist())
        decode = jit(device.decode, static, common=[0, 3, 4], donate=1, out=(cache, by_replica, by_replica))
        pages = of_replicas(np.zeros(settings.slots, np.int32))
        lowered = {
            "prefill": prefill.lower(self._params, self._cache, *of_replicas(make_calls([], settings)[0])),
            "copy pages": copy.lower(self._cache, pages, pages),
        }
        idle = Scheduler(Samples(1), settings.slots, 1, settings.page_size, settings.max_tokens, 1)
        for width in settings.widths:
            batch = of_replicas(make_batch(idle, np.zeros(0, np.int32), width, settings))
            lowered[f"decode {width}"] = decode.lower(self._params, self._cache, batch, key, temperature)
        return lowered

    def _on_replicas(self, function: Callable, common: Sequence[int]) -> Callable:
        """The function on every replica: arguments and results have the replica as first axis, but for `common`."""

        def of_one(*args):
            args = [
                arg if i in common else jax.tree.map(lambda x: x.reshape(x.shape[1:]), arg)
                for i, arg in enumerate(args)
            ]
            return jax.tree.map(lambda x: x[None], function(*args))

        def of_all(*args):
            specs = tuple(PartitionSpec() if i in common else PartitionSpec("data") for i in range(len(args)))
            return jax.shard_map(
                of_one, mesh=self._mesh, axis_names={"data"}, in_specs=specs, out_specs=PartitionSpec("data"),
                check_vma=False,
            )(*args)  # fmt: skip

        return of_all
