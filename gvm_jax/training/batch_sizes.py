"""Sizes of micro-batches that suit a config and the devices, and what to change where none does."""

import math

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, validate


def micro_batches(config: ConfigDict, shards: int) -> list[int]:
    """The values of `optimizer.micro_batch` that can be run, ascending.

    Args:
      config: validated.
      shards: devices that share the rows of a batch: mesh.data × mesh.fsdp.
    """
    share = config.rollouts_per_step // config.optimizer.updates_per_step
    least = shards * config.optimizer.samples_per_row
    return [size for size in range(least, share + 1, least) if share % size == 0]


def check_micro_batch(config: ConfigDict, shards: int) -> None:
    """Whether each of the devices that share a micro-batch has whole rows of it; arguments as of `micro_batches`.

    Raises:
      ConfigError: it has not; the message has flags with which it has.
    """
    micro_batch, samples_per_row = config.optimizer.micro_batch, config.optimizer.samples_per_row
    if micro_batch % (shards * samples_per_row) == 0:
        return
    allowed = micro_batches(config, shards)
    if allowed:
        best = max([size for size in allowed if size <= micro_batch], default=allowed[0])
        advice = f"use --config.optimizer.micro_batch={best}"
    else:
        changes = _other_sizes(config, shards * samples_per_row)
        flags = " ".join(f"--config.{field}={value}" for field, value in changes.items())
        advice = f"no divisor of the {config.rollouts_per_step // config.optimizer.updates_per_step} is: use {flags}"
    raise ConfigError(
        f"optimizer.micro_batch = {micro_batch}: must be a multiple of mesh.data × mesh.fsdp × "
        f"optimizer.samples_per_row = {shards} × {samples_per_row}, so that each of the devices that share a batch has "
        f"whole rows, and divide rollouts_per_step / optimizer.updates_per_step; {advice}"
    )


def _other_sizes(config: ConfigDict, least: int) -> dict[str, int]:
    """The fields of a step near to the config's with a micro-batch that is a multiple of `least`."""
    rollouts, prompts, updates = config.rollouts_per_step, config.prompts_per_step, config.optimizer.updates_per_step
    near = least * max(config.optimizer.micro_batch // least, 1)
    for micro_batch in (near, least):
        unit = updates * micro_batch
        for size in (-(-rollouts // unit) * unit, rollouts // unit * unit):
            changes = {"rollouts_per_step": size, "optimizer.micro_batch": micro_batch}
            if _is_valid(config, changes):
                return changes
    # As many samples of a prompt as before keep to every floor and cap.
    prompts = math.ceil(prompts / (updates * least)) * updates * least
    samples = rollouts // config.prompts_per_step
    return {"prompts_per_step": prompts, "rollouts_per_step": prompts * samples, "optimizer.micro_batch": least}


def _is_valid(config: ConfigDict, changes: dict[str, int]) -> bool:
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(changes)
    try:
        validate(changed)
    except ConfigError:
        return False
    return True
