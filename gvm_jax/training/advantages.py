"""Advantages: a sample's reward compared with those of its prompt's samples, which are a segment of any size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Group(NamedTuple):
    """What a sample's reward is compared with: its prompt's counted samples, row by row; zeros for padding."""

    count: Float[Array, " N"]
    mean: Float[Array, " N"]
    std: Float[Array, " N"]  # with count − 1; 0 for a single sample


def positive_part(rewards: Float[Array, " N"], group: Group) -> Float[Array, " N"]:
    """max(r, 0): rejected samples are not learned from."""
    return jnp.maximum(rewards, 0.0)


def as_graded(rewards: Float[Array, " N"], group: Group) -> Float[Array, " N"]:
    """r; with rewards in {0, 1} the same as `positive_part`, and a negative one is learned from."""
    return rewards


def leave_one_out(rewards: Float[Array, " N"], group: Group) -> Float[Array, " N"]:
    """r less the mean of the other counted samples, which is n/(n−1)·(r − mean); 0 for a single sample."""
    return centred(rewards, group) * group.count / jnp.maximum(group.count - 1.0, 1.0)


def centred(rewards: Float[Array, " N"], group: Group) -> Float[Array, " N"]:
    """r − mean, the sample itself in the mean; 0 for a single sample."""
    return rewards - group.mean


def standardised(rewards: Float[Array, " N"], group: Group) -> Float[Array, " N"]:
    """(r − mean)/(std + 1e-6); 0 for a single sample, where the reference implementation of GVM has r itself."""
    return centred(rewards, group) / (group.std + 1e-6)


def segment_sum(values: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Float[Array, " S"]:
    """Sum of the values of each segment; those of the segment `num_segments` are left out."""
    return jax.ops.segment_sum(values, segments, num_segments)


def equal_shares(rows: Bool[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Float[Array, " N"]:
    """1/k on the k rows of each segment that are chosen, 0 on the others."""
    chosen = rows.astype(jnp.float32)
    return chosen / jnp.maximum(of_segment(segment_sum(chosen, segments, num_segments), segments), 1.0)


def group_statistics(
    rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int, counted: Bool[Array, " N"]
) -> Group:
    """Each row's group: number, mean and std (with n − 1) of the counted rewards of its segment."""
    weight = counted.astype(jnp.float32)
    count = segment_sum(weight, segments, num_segments)

    def mean_of(values: Float[Array, " N"]) -> Float[Array, " S"]:
        return segment_sum(weight * values, segments, num_segments) / jnp.maximum(count, 1.0)

    mean = mean_of(rewards)
    # Rounding in the mean of equal rewards (0.7, say) would be a deviation of 1e-8, which over a std of 1e-8 is not 0.
    mean += mean_of(rewards - of_segment(mean, segments))
    squares = segment_sum(weight * (rewards - of_segment(mean, segments)) ** 2, segments, num_segments)
    std = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
    return Group(*(of_segment(x, segments) for x in (count, mean, std)))


def of_segment(values: Float[Array, " S"], segments: Int[Array, " N"]) -> Float[Array, " N"]:
    """Each row's value of its segment; 0 where the row has none."""
    return values.at[segments].get(mode="fill", fill_value=0.0)
