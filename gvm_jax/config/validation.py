"""Checks of a whole config: every field, and the fields that must suit each other. Touches no file and no device."""

import difflib
from collections.abc import Callable

from ml_collections import ConfigDict

from gvm_jax.config.fields import FIELDS, OPTIONS
from gvm_jax.config.formats import flat
from gvm_jax.config.rules import ConfigError, OnResume

HEADER = "the config cannot be run (set a field with --config.FIELD=VALUE):"


def validate(config: ConfigDict) -> None:
    """Checks a config.

    Raises:
      ConfigError: with all its `problems`, one a line.
    """
    if found := problems(config):
        raise ConfigError("\n  ".join([HEADER, *found.values()]))


def problems(config: ConfigDict) -> dict[str, str]:
    """What is wrong with a config, by field; of fields that do not suit each other the first one's name counts."""
    fields = flat(config)
    found = {name: f"{name}: missing; must be {field.allowed}" for name, field in FIELDS.items() if name not in fields}
    for name, value in fields.items():
        if name not in FIELDS and not is_option(name):
            found[name] = f"{name} = {value!r}: unknown field; {hint(name)}"
        elif name in FIELDS and not FIELDS[name].holds(value):
            near = difflib.get_close_matches(str(value), FIELDS[name].rule.choices, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            found[name] = f"{name} = {value!r}: must be {FIELDS[name].allowed}{meant}"
    across = {}
    for check, names in _CROSS_CHECKS.items():
        if found.keys().isdisjoint(names) and (problem := check(*(fields[name] for name in names))):
            across[problem.partition(" = ")[0]] = problem
    return found | across


def is_option(name: str) -> bool:
    """Whether a name is an option's: a field that the strategy declares."""
    return name.startswith(f"{OPTIONS}.")


def on_resume(name: str) -> OnResume:
    """Whether the field of this name may change on resume; an option may not."""
    return FIELDS[name].on_resume if name in FIELDS else OnResume.KEPT


def nearest_field(name: str) -> str | None:
    """The field or section that a mistyped name most likely means; None if none comes near.

    By the letters of the whole name, or of its last part in any section; initials count (`optimizer.lr`).
    """
    name = name.lower()
    section, _, last = name.rpartition(".")
    # Fields of the same section replace those of others.
    ordered = sorted(reversed(FIELDS), key=lambda field: bool(section) and field.startswith(f"{section}."))
    by_last = {field.rpartition(".")[2]: field for field in ordered}
    for word, field in by_last.items():
        if len(last) > 1 and last == "".join(part[:1] for part in word.split("_")):
            return field
    sections = {field.rpartition(".")[0] for field in FIELDS} - {""}
    if near := difflib.get_close_matches(name, [*FIELDS, *sorted(sections)], n=1):
        return near[0]
    near = difflib.get_close_matches(last, by_last, n=1)
    return by_last[near[0]] if near else None


def hint(name: str, prefix: str = "") -> str:
    """The advice on an unknown field."""
    near = nearest_field(name)
    return f"did you mean {prefix}{near}?" if near else "`gvm-jax config` lists the fields"


def _rollouts_within_bounds(rollouts, prompts, mode, pilots, floor, cap) -> str | None:
    pilots = pilots if mode == "pilot" else 0
    plus_pilots = "prompts_per_step × (allocation.pilot_samples + {})" if pilots else "prompts_per_step × {}"
    least, most = prompts * (pilots + floor), prompts * (pilots + cap)
    if rollouts < least:
        bound, advice = f">= {plus_pilots.format('allocation.min_samples')} = {least}", "raise it or lower one of those"
    elif cap and rollouts > most:
        bound = f"<= {plus_pilots.format('allocation.max_samples')} = {most}"
        advice = "lower it, raise the cap, or set allocation.max_samples to 0 for none"
    else:
        return None
    return f"rollouts_per_step = {rollouts}: must be {bound}; {advice}"


def _equal_updates(rollouts, updates, micro_batch) -> str | None:
    if rollouts % updates:
        return (
            f"rollouts_per_step = {rollouts}: must be divisible by optimizer.updates_per_step = {updates}, "
            "so that every update sees an equal share; change either"
        )
    if (rollouts // updates) % micro_batch:
        return (
            f"optimizer.micro_batch = {micro_batch}: must divide the rollouts of one update, "
            f"rollouts_per_step / optimizer.updates_per_step = {rollouts // updates}; set it to a divisor"
        )
    return None


def _weighting_suits_the_algorithm(algorithm, weighting) -> str | None:
    if weighting != "log_likelihood" or algorithm in ("raft", "raft_pp"):
        return None
    return (
        "objective.weighting = 'log_likelihood': weighs accepted samples only, but objective.algorithm = "
        f"{algorithm!r} learns from rejected ones too; use 'reward', 'sequence_mean', 'token_mean' or 'auto'"
    )


def _one_axis_fills_the_mesh(*sizes) -> str | None:
    if sizes.count(-1) <= 1:
        return None
    shown = ", ".join(f"mesh.{axis} = {size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes, strict=True))
    return f"{shown}: at most one axis may be -1; give the others their number of devices"


# Each is called with the values of its fields, in this order, if all of these hold what they may.
_CROSS_CHECKS: dict[Callable[..., str | None], tuple[str, ...]] = {
    _rollouts_within_bounds: (
        *("rollouts_per_step", "prompts_per_step", "allocation.mode", "allocation.pilot_samples"),
        *("allocation.min_samples", "allocation.max_samples"),
    ),
    _equal_updates: ("rollouts_per_step", "optimizer.updates_per_step", "optimizer.micro_batch"),
    _weighting_suits_the_algorithm: ("objective.algorithm", "objective.weighting"),
    _one_axis_fills_the_mesh: ("mesh.data", "mesh.fsdp", "mesh.tensor"),
}
