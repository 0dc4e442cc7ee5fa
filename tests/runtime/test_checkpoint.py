"""A state comes back with its types, bits and shardings, or from the newest checkpoint that is whole."""

import contextlib
import logging
import os
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.runtime.checkpoint_files import CheckpointError, restore_subtree
from tests.runtime import processes


@flax.struct.dataclass
class State:
    params: dict
    model: nnx.State
    optimizer: optax.OptState
    step: jax.Array


def make_state() -> State:
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "layers": {"kernel": jax.random.normal(keys[0], (8, 4)), "bias": jnp.array([jnp.nan, -0.0, 1e-40])},
        "embed": jax.random.normal(keys[1], (4, 2), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    _, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    model = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    return State(params, model, opt_state, jnp.uint32(2**31 + 3))


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def bits(tree) -> list[tuple]:
    return [(x.dtype.name, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@contextlib.contextmanager
def opened(workdir, every=1, keep=5, **options):
    checkpointer = Checkpointer(workdir, every=every, keep=keep, **options)
    yield checkpointer
    checkpointer.close()


def kept(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


def test_a_state_comes_back_with_its_types_and_bits(tmp_path):
    state = make_state()
    extra = {"stream": {"epoch": 1, "position": 17}, "tokens": 2**40, "seconds": [0.1]}
    with opened(tmp_path, every=5) as checkpointer:
        assert checkpointer.restore(abstract(state)) is None
        assert checkpointer.save(5, state, extra)
    with opened(tmp_path) as checkpointer:
        restored, restored_extra, step = checkpointer.restore(abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert type(restored.model) is nnx.State and type(restored.optimizer) is type(state.optimizer)
    assert bits(restored) == bits(state)
    assert (restored_extra, step) == (extra, 5)


def test_due_and_forced_steps_are_saved_and_the_newest_kept(tmp_path):
    state = {"x": jnp.arange(3)}
    with opened(tmp_path, every=2, keep=2) as checkpointer:
        saved = [checkpointer.save(step, state, {"step": step}) for step in range(1, 7)]
        assert saved == [False, True, False, True, False, True]
        assert checkpointer.save(7, state, {"step": 7}, force=True)
        assert not checkpointer.save(7, state, {"step": 7}, force=True)
        checkpointer.wait()
        assert kept(tmp_path) == ["6", "7"]
        assert checkpointer.restore(abstract(state))[1:] == ({"step": 7}, 7)


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    state = {"x": jnp.zeros((2000, 1000))}
    advance = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)
    with opened(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(5):
            state = advance(state)
        assert not np.asarray(checkpointer.restore(abstract(state))[0]["x"]).any()


def test_a_checkpoint_that_was_being_written_is_not_seen(two_steps):
    (two_steps / "checkpoints" / "3.orbax-checkpoint-tmp-123").mkdir()
    with opened(two_steps) as checkpointer:
        assert checkpointer.restore(abstract(STATE))[2] == 2
        checkpointer.save(3, STATE, {})
    assert kept(two_steps) == ["1", "2", "3"]


def test_the_best_steps_are_kept_beside_the_newest(tmp_path):
    scores = {}
    with opened(tmp_path, keep=1, keep_best=2) as checkpointer:
        for step, score in enumerate([0.1, 0.9, 0.3, 0.9, None, 0.2, 0.4], start=1):
            checkpointer.save(step, {"x": jnp.arange(3)}, {}, scores)
            if score is not None:
                scores[step] = score
    assert kept(tmp_path) == ["2", "4", "7"]


STATE = {"big": jax.random.normal(jax.random.key(0), (300, 50)), "small": jnp.arange(5), "zero": jnp.zeros(7)}


@pytest.fixture
def two_steps(tmp_path):
    """A workdir with checkpoints of steps 1 and 2."""
    with opened(tmp_path) as checkpointer:
        checkpointer.save(1, jax.tree.map(lambda x: x + 1, STATE), {"step": 1})
        checkpointer.save(2, STATE, {"step": 2})
    return tmp_path


def biggest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = biggest(folder)
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(folder):  # neither zarr nor OCDBT notice
    path = biggest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_the_record(folder):
    path = folder / "run/metadata"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def take_the_other(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("1"), folder)


DAMAGES = {
    "a truncated shard": (truncate, "checkpoints/2/state"),
    "a missing shard": (lambda folder: biggest(folder).unlink(), "checkpoints/2/state"),
    "a flipped bit": (flip_a_bit, "not what was saved, among them state['big']"),
    "a missing manifest": (lambda folder: (folder / "state/manifest.ocdbt").unlink(), "checkpoints/2/state"),
    "no metadata": (lambda folder: (folder / "run/metadata").unlink(), "checkpoints/2/run/metadata"),
    "an altered record": (change_the_record, "checkpoints/2/run/metadata is not what was saved"),
    "no state": (lambda folder: shutil.rmtree(folder / "state"), "state"),
    "another step's folder": (take_the_other, "holds step 1; give the folder that name"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "checkpoints/2"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES)
def test_a_broken_checkpoint_is_set_aside_loudly_for_the_one_before(two_steps, caplog, damage, named):
    damage(two_steps / "checkpoints/2")
    with opened(two_steps) as checkpointer:
        with caplog.at_level(logging.ERROR, logger="absl"):
            state, extra, step = checkpointer.restore(abstract(STATE))
        assert (step, extra) == (1, {"step": 1}) and bits(state) == bits(jax.tree.map(lambda x: x + 1, STATE))
        errors = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
        (error,) = (
            error for error in errors if "STEP 2 IS BROKEN, GOING ON FROM STEP 1" in error
        )  # Orbax may log others
        assert named in error
        assert (two_steps / "broken/2").is_dir()
        assert checkpointer.save(2, STATE, {"step": 2})
    with opened(two_steps) as checkpointer:
        assert bits(checkpointer.restore(abstract(STATE))[0]) == bits(STATE)


def test_without_a_good_checkpoint_all_stay_and_the_error_names_each(two_steps):
    truncate(two_steps / "checkpoints/1")
    flip_a_bit(two_steps / "checkpoints/2")
    with opened(two_steps) as checkpointer:
        with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be read.*\n  step 2: .*\n  step 1: "):
            checkpointer.restore(abstract(STATE))
    assert kept(two_steps) == ["1", "2"]
    with pytest.raises(CheckpointError, match="checkpoints/2: cannot be read"):
        restore_subtree(two_steps, "big", abstract(STATE["big"]))


FULL_DISK = """
import os, resource, sys
import jax.numpy as jnp, numpy as np
from absl import logging
from gvm_jax.runtime.checkpoint import Checkpointer

logging.use_absl_handler()
logging.set_verbosity(logging.WARNING)  # as in training
state = {f"x{i}": jnp.asarray(np.random.default_rng(i).normal(size=30_000)) for i in range(20)}
checkpointer = Checkpointer(sys.argv[1], every=1, keep=1)
checkpointer.save(1, state, {})
checkpointer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # as a full disk: part of it is written
try:
    checkpointer.save(2, state, {})
    checkpointer.wait()
except OSError as error:
    print(error)
checkpointer.close()
print(os.listdir(sys.argv[1] + "/checkpoints"))
"""


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_stays_whole(tmp_path):
    result = processes.run(FULL_DISK, tmp_path)
    assert result.returncode == 0, result.stderr
    error, listed = result.stdout.splitlines()
    assert error.startswith(f"{tmp_path}/checkpoints: a checkpoint could not be saved; that of step 1 is whole.")
    assert "free space or lower checkpoint.keep" in error and "File too large" in error
    assert listed == "['1']", "what was written of the other one takes room"
    assert "Traceback" not in result.stderr, "Orbax's threads say what is raised anyway"
    with opened(tmp_path) as checkpointer:
        assert checkpointer.restore({f"x{i}": jax.ShapeDtypeStruct((30_000,), np.float32) for i in range(20)})[2] == 1


def test_a_state_of_another_layout_is_refused_with_what_differs(tmp_path):
    expected = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(4), "d": jnp.zeros(3)}
    with opened(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(3), "c": jnp.zeros(3)}, {})
        with pytest.raises(ValueError, match="another --workdir") as raised:
            checkpointer.restore(abstract(expected))
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "['a']: 'float32[3]' -> 'bfloat16[3]'",
        "['b']: 'float32[3]' -> 'float32[4]'",
        "['c']: 'float32[3]' -> (absent)",
        "['d']: (absent) -> 'float32[3]'",
    ]


@pytest.mark.parametrize("extra", [{"position": (1, 2)}, {1: 2}, {"x": float("nan")}])
def test_an_extra_that_would_come_back_changed_is_refused(tmp_path, extra):
    with opened(tmp_path) as checkpointer, pytest.raises(ValueError):
        checkpointer.save(1, {"x": jnp.zeros(1)}, extra)


def test_a_state_is_restored_onto_another_mesh(tmp_path, test_mesh):
    state = {"kernel": jax.random.normal(jax.random.key(1), (8, 4)), "step": jnp.int32(9)}
    mesh = test_mesh(fsdp=4)
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
    target = {"kernel": abstract(state["kernel"], split), "step": abstract(state["step"], everywhere)}
    with opened(tmp_path) as checkpointer:
        checkpointer.save(3, state, {})
        restored, _, step = checkpointer.restore(target)
    assert step == 3 and bits(restored) == bits(state)
    assert restored["kernel"].sharding == split and restored["step"].sharding == everywhere
    assert {shard.data.shape for shard in restored["kernel"].addressable_shards} == {(2, 4)}
