"""Exchange between the processes of a run, each of which works by itself in between.

`any_process` and `gather_rows` are collectives: all processes call them, in the same order.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float

from gvm_jax.runtime import watch

Tree = TypeVar("Tree")


def share(work: Float[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
    """Which items this process takes: those with most work first, each to the process with the least so far.

    Nothing is exchanged: all processes compute the same shares from the same `work`.
    """
    loads, mine = np.zeros(jax.process_count()), np.zeros(len(work), bool)
    for item in np.argsort(-np.asarray(work), kind="stable"):
        process = np.argmin(loads)
        loads[process] += work[item]
        mine[item] = process == jax.process_index()
    return mine


def any_process(flags: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Each flag, raised if it is on any process."""
    if jax.process_count() == 1:
        return flags
    return multihost_utils.process_allgather(flags).any(0)


def gather_rows(tree: Tree) -> Tree:
    """The rows of all processes, process by process; of each there may be any number.

    Args:
      tree: host arrays with the same number of rows, [rows, ...].
    """
    if jax.process_count() == 1:
        return tree
    rows = len(jax.tree.leaves(tree)[0])
    all_rows = multihost_utils.process_allgather(np.int32(rows))

    def gather(x):
        padded = np.pad(x, [(0, all_rows.max() - rows), *[(0, 0)] * (x.ndim - 1)])
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([part[:count] for part, count in zip(parts, all_rows, strict=True)])

    return jax.tree.map(gather, tree)


def is_first() -> bool:
    """Whether this process is the run's first; unlike `jax.process_index()` it touches no device."""
    return watch.current is None or watch.current.process == 0
