"""Checksums of the arrays of a pytree that do not depend on the devices which hold them."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from gvm_jax.runtime.cpu import compiler_options

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # of 8 bytes: two words


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection that spreads every bit over the word: the finaliser of MurmurHash3 (Appleby, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _checksum(x: Array) -> UInt32[Array, ""]:
    """The sum modulo 2^32 of every element's bits mixed with its index: the same in any order, so on any mesh."""
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(words ^ _mix(index + 1)), dtype=jnp.uint32)


@functools.cache
def _program(mesh: Mesh | None):
    """One program for all arrays: several would be in flight at once, and processes could meet in different ones."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    options = None if mesh is None else compiler_options(mesh)
    return jax.jit(lambda tree: jax.tree.map(_checksum, tree), out_shardings=everywhere, compiler_options=options)


def checksums(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum of every array, by its path; a collective where arrays are spread over processes.

    Any change to a single element changes the array's checksum; of other changes one in 2^32 does not.
    """
    meshes = [x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(getattr(x, "sharding", None), NamedSharding)]
    sums = jax.device_get(_program(meshes[0] if meshes else None)(tree))
    return {jax.tree_util.keystr(path): int(x) for path, x in jax.tree_util.tree_leaves_with_path(sums)}


def checksum(tree: PyTree) -> str:
    """One checksum of all arrays, in hexadecimal: the identity of parameters that are loaded."""
    return f"{sum(checksums(tree).values()) % 2**64:016x}"
