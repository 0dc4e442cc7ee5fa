"""A checkpoint that one of two processes cannot read is left by both."""

import pytest

from tests.runtime import processes

# Saves steps 1 and 2; the shard that process 1 wrote of step 2 is damaged; restores and saves step 2 again.
PROCESS = """
import pathlib, sys
from ml_collections import ConfigDict
from gvm_jax.runtime import distributed

workdir, damage = pathlib.Path(sys.argv[1]), sys.argv[2]
with distributed.start(ConfigDict({"start_seconds": 20.0, "peer_seconds": 5.0})):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from gvm_jax.runtime.checkpoint import Checkpointer

    sharding = jax.NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), jax.P("x"))

    def state(step):
        rows = np.random.default_rng(step).normal(size=(400, 50)).astype(np.float32)
        return {"rows": jax.make_array_from_callback(rows.shape, sharding, lambda i: rows[i])}

    checkpointer = Checkpointer(workdir, every=1, keep=5)
    for step in (1, 2):
        checkpointer.save(step, state(step), {"step": step})
    checkpointer.close()
    if jax.process_index() == 0:
        shards = (workdir / "checkpoints/2/state/ocdbt.process_1").rglob("*")
        path = max((path for path in shards if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink() if damage == "missing" else path.write_bytes(content)
    multihost_utils.sync_global_devices("damaged")

    checkpointer = Checkpointer(workdir, every=1, keep=5)
    found, extra, step = checkpointer.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=x.sharding), state(0)))
    ours = zip(found["rows"].addressable_shards, state(1)["rows"].addressable_shards, strict=True)
    assert (step, extra) == (1, {"step": 1}) and all(np.array_equal(a.data, b.data) for a, b in ours)
    assert checkpointer.save(2, state(2), {"step": 2})
    checkpointer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_what_one_process_cannot_read_is_set_aside_by_all(damage, tmp_path):
    ended = processes.run_together(PROCESS, tmp_path, damage, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    for done in ended:
        assert done.returncode == 0 and "STEP 2 IS BROKEN, GOING ON FROM STEP 1" in done.stderr, done.stderr[-3000:]
    assert damage == "altered" or "another process could not read it" in ended[0].stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["2"]
