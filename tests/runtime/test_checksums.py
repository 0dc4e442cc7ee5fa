"""A checksum tells of every bit and of every exchange, and is the same on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gvm_jax.runtime.checksums import checksums

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),
    "bfloat16": jnp.arange(24, dtype=jnp.bfloat16).reshape(4, 6),
    "int32": np.arange(5, dtype=np.int32),
    "uint8": np.arange(9, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.float32(0.5),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_change_of_one_element_is_seen(name):
    array = np.asarray(ARRAYS[name])
    before = checksums({"x": array})
    for i in range(array.size):
        changed = np.array(array)
        view = changed.reshape(-1)[i : i + 1].view(np.uint8)
        view[0] ^= 1
        assert checksums({"x": changed}) != before


def test_an_exchange_of_equal_bits_is_seen():
    zeros = jnp.zeros((4, 4))
    assert checksums([zeros.at[0, 1].set(1)]) != checksums([zeros.at[1, 0].set(1)])
    assert checksums([jnp.float32(0.0)]) != checksums([jnp.float32(-0.0)])
    assert checksums([jnp.zeros(3)]) != checksums([jnp.zeros(4)])


def test_it_is_the_same_on_any_mesh(test_mesh):
    expected = checksums(ARRAYS)
    assert set(expected) == {f"['{name}']" for name in ARRAYS} and len(set(expected.values())) == len(ARRAYS)
    for sizes, split in (((1, 4, 1), ("fsdp",)), ((2, 1, 2), (("data", "tensor"),)), ((1, 2, 2), ("fsdp", "tensor"))):
        mesh = test_mesh(*sizes)
        spec = {name: PartitionSpec(*split) if name in ("float32",) else PartitionSpec() for name in ARRAYS}
        if len(split) == 1:
            spec["bfloat16"] = PartitionSpec(*split)
        placed = {name: jax.device_put(ARRAYS[name], NamedSharding(mesh, spec[name])) for name in ARRAYS}
        assert checksums(placed) == expected
