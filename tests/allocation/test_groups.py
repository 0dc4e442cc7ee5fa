import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.allocation.groups import rank_within


@pytest.mark.parametrize("seed", range(3))
def test_ranks_count_the_rows_of_a_group_that_come_before(seed):
    rng = np.random.default_rng(seed)
    groups, values = rng.integers(0, 5, 40), rng.integers(0, 4, 40).astype(np.float32)
    earlier, same = np.arange(40) < np.arange(40)[:, None], groups == groups[:, None]
    assert rank_within(jnp.asarray(groups)).tolist() == (same & earlier).sum(1).tolist()
    lower = (values < values[:, None]) | ((values == values[:, None]) & earlier)
    assert rank_within(jnp.asarray(groups), jnp.asarray(values)).tolist() == (same & lower).sum(1).tolist()
