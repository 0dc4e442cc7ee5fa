"""The variants of a comparison, from how they are typed: the fields that each sets, and its baseline.

    gvm                                 a strategy
    gvm:allocation.options.alpha=1e-2   with a field set; further ones follow, each after a colon
    gvm+updates+clip                    with confounds of the reference comparison, each after a plus
    my_strategy:Power+clip              one of your own

A confound is something besides the counts that the reference implementation (RLHFlow/GVM) does to GVM and not to the
methods that it is compared with. Each is off here unless it is asked for.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from gvm_jax.allocation import STRATEGIES, load_strategy, make_strategy
from gvm_jax.config import FIELDS, ConfigError, flat, from_text, is_option, validate

_SET_ELSEWHERE = {
    "seed": "the comparison sets it; shift all with --config.seed",
    "allocation.strategy": "it is the entry's name; use --strategies",
}

CONFOUNDS: dict[str, Callable[[ConfigDict], dict[str, Any]]] = {
    # Mini-batches of a fixed size cut GVM's larger batches into more updates: 32 for 4 (RAFT++), 8 for 4 (GRPO).
    "updates": lambda config: {
        "optimizer.updates_per_step": config.optimizer.updates_per_step
        * (2 if config.objective.algorithm == "grpo" else 8)
    },
    # A mean over all tokens: a prompt's weight grows with its count.
    "token_mean": lambda config: {"objective.weighting": "token_mean"},
    # A wider upper clip of the importance ratio.
    "clip": lambda config: {"objective.clip_high": 0.4},
    # Pilots on top of the budget, thrown away after the allocation, and not counted as rollouts.
    "pilots": lambda config: {
        "allocation.mode": "pilot",
        "allocation.pilot_weight": 0.0,
        "rollouts_per_step": config.rollouts_per_step + config.prompts_per_step * config.allocation.pilot_samples,
    },
    # The plain frequencies of this step's pilots, which are part of the budget: without an accepted one, no samples.
    # Set beside `gvm:allocation.mode=pilot` it shows what dropping does. Without pilots a dropped prompt would never be
    # measured again.
    "dropped": lambda config: {
        "allocation.strategy": "gvm_paper", "allocation.mode": "pilot", "allocation.decay": 0.0
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """A strategy with its settings."""

    label: str  # an entry that gives this variant again
    baseline: str | None  # label of the variant that it is compared with; None = it is a baseline itself
    overrides: dict[str, Any]  # field -> value, on top of the config that all share
    free_pilots: int = 0  # rollouts of a step that are not counted: those of the confound `pilots`

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.=+-]", "-", self.label)

    def config(self, shared: ConfigDict, seed: int) -> ConfigDict:
        """The whole config of the variant's run with this seed, validated.

        Raises:
          ConfigError: it cannot be run; in one line.
        """
        config = _with(shared, {**self.overrides, "seed": seed})
        try:
            validate(config)
            make_strategy(config.allocation)
        except ConfigError as error:
            first, *problems = (line.strip() for line in str(error).splitlines())
            raise ConfigError(f"{self.label}: {'; '.join(problems) or first}") from error
        return config


def make_variants(
    config: ConfigDict, entries: Sequence[str], sweep: str = "", confounds: Sequence[str] = ()
) -> list[Variant]:
    """The variants of a comparison, baselines first.

    Args:
      config: shared by all variants.
      entries: as in the module's docstring; the first is the baseline of the others.
      sweep: "FIELD:VALUE,VALUE,...": each entry but the baseline, once with each value. A field outside of
        `allocation.` changes what equal counts do too, so the baseline then takes each value as well.
      confounds: each entry but the baseline, as it is, with each confound alone and with all of them.

    Raises:
      ConfigError: an unknown name, a value that the field may not hold, the same variant twice; in one line.
    """
    if sweep and confounds:
        raise ConfigError("--sweep and --confounds: one at a time")
    if not all(entries) or not entries:
        raise ConfigError(f"--strategies={','.join(entries)}: must name strategies, of {', '.join(STRATEGIES)}")
    first, *others = entries
    pairs = [(first, None), *((other, first) for other in others)]
    if (sweep or confounds) and not others:
        flag = "--sweep" if sweep else "--confounds"
        raise ConfigError(f"{flag}: --strategies={first} names the baseline alone; add the strategy to vary")
    if sweep:
        field, values = _parse_sweep(sweep)
        moved = not field.startswith("allocation.")
        at = [f":{field}={value}" for value in values]
        baselines = [first + value if moved else first for value in at]
        pairs = [(baseline, None) for baseline in dict.fromkeys(baselines)]
        pairs += [(other + value, base) for other in others for value, base in zip(at, baselines, strict=True)]
    if confounds:
        each = [f"+{name}" for name in confounds]
        switched = ["", *each, *(["".join(each)] if len(each) > 1 else [])]
        split = [_split(other) for other in others]
        pairs = [(first, None)]
        pairs += [(":".join([name + added, *fields]), first) for name, *fields in split for added in switched]

    label = functools.cache(lambda entry: parse(config, entry).label)
    variants = [parse(config, entry, baseline and label(baseline)) for entry, baseline in pairs]
    seen: dict[str, str] = {}
    for variant, (entry, _) in zip(variants, pairs, strict=True):
        if variant.folder in seen:
            raise ConfigError(f"{entry}: the same as {seen[variant.folder]}; name each variant once")
        seen[variant.folder] = entry
    return variants


def parse(config: ConfigDict, entry: str, baseline: str | None = None) -> Variant:
    """The variant of one entry; see `make_variants`."""
    name, *settings = _split(entry)
    strategy, *confounds = name.split("+")
    try:
        load_strategy(strategy)
    except ConfigError as error:
        raise ConfigError(f"{entry}: {error}") from error
    overrides = {"allocation.strategy": strategy}
    if strategy == "uniform":
        overrides["allocation.mode"] = "online"  # equal counts have nothing to measure first
    set_here = dict(_parse_setting(_with(config, overrides), entry, setting) for setting in settings)
    overrides |= set_here
    overrides |= _confounded(_with(config, overrides), entry, confounds, set_here)
    chosen = _with(config, overrides)
    for field in set_here:
        _check_effect(chosen, entry, field)
    try:
        make_strategy(chosen.allocation)
    except ConfigError as error:
        if any(map(is_option, set_here)):
            raise ConfigError(f"{entry}: {error}") from error
    shown = [f"{field}={value}" for field, value in set_here.items()]
    free_pilots = chosen.prompts_per_step * chosen.allocation.pilot_samples if "pilots" in confounds else 0
    return Variant(":".join([name, *shown]), baseline, overrides, free_pilots)


def _confounded(config: ConfigDict, entry: str, names: Sequence[str], set_here: dict) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for name in names:
        if name not in CONFOUNDS:
            raise ConfigError(f"{entry}: unknown confound {name!r}; use some of {', '.join(CONFOUNDS)}")
        if name == "dropped" and config.allocation.strategy != "gvm":
            raise ConfigError(f"{entry}: confound 'dropped' turns gvm into gvm_paper; it goes with no other strategy")
        overrides |= CONFOUNDS[name](config)
    if twice := overrides.keys() & set_here.keys():
        raise ConfigError(f"{entry}: a confound sets {', '.join(sorted(twice))} too; leave one of the two out")
    config = _with(config, overrides)
    share, rest = divmod(config.rollouts_per_step, config.optimizer.updates_per_step)
    if overrides and rest == 0:  # micro-batches are summed: their size changes no update
        micro_batch = math.gcd(share, config.optimizer.micro_batch)
        if micro_batch != config.optimizer.micro_batch:
            overrides["optimizer.micro_batch"] = micro_batch
    return overrides


def _parse_setting(config: ConfigDict, entry: str, setting: str) -> tuple[str, Any]:
    field, equals, text = setting.partition("=")
    if not (field and equals and text):
        raise ConfigError(f"{entry}: {setting!r} must be FIELD=VALUE, as in gvm:allocation.options.alpha=1e-2")
    if is_option(field):  # the strategy checks it
        strategy = load_strategy(config.allocation.strategy)
        defaults = {known.name: known.default for known in dataclasses.fields(strategy)}
        return field, from_text(text, defaults.get(field.rpartition(".")[2]))
    if field not in FIELDS:
        raise ConfigError(f"{entry}: unknown field {field!r}; `gvm-jax config` lists the fields")
    if field in _SET_ELSEWHERE:
        raise ConfigError(f"{entry}: {field} cannot be set here: {_SET_ELSEWHERE[field]}")
    kind = type(flat(config)[field])
    if kind not in (bool, int, float, str):
        raise ConfigError(f"{entry}: {field} cannot be set here; set it for all with --config.{field}")
    value = from_text(text, FIELDS[field].default)
    if type(value) is not kind or not FIELDS[field].holds(value):
        raise ConfigError(f"{entry}: {field} = {text}: must be {FIELDS[field].allowed}")
    return field, value


def _check_effect(config: ConfigDict, entry: str, field: str) -> None:
    """Refuses a field that this variant never reads: its runs would be copies of others."""
    section, _, name = field.rpartition(".")
    if section != "allocation":
        return
    if name.startswith("pilot_") and config.allocation.mode != "pilot":
        raise ConfigError(f"{entry}: {field} has no effect without pilots; add --config.allocation.mode=pilot")


def _parse_sweep(sweep: str) -> tuple[str, list[str]]:
    field, _, values = sweep.partition(":")
    if not field or not values or not all(values.split(",")):
        raise ConfigError(f"--sweep={sweep}: must be FIELD:VALUE,VALUE,..., as in allocation.options.alpha:1e-3,1e-2")
    return field, values.split(",")


def _split(entry: str) -> list[str]:
    """The strategy with its confounds, then the settings: `m:Class+clip:a.b=1` -> `m:Class+clip`, `a.b=1`."""
    name, *rest = entry.split(":")
    is_path = rest and "=" not in rest[0] and name.partition("+")[0] not in STRATEGIES  # of a strategy of one's own
    return [f"{name}:{rest[0]}", *rest[1:]] if is_path else [name, *rest]


def _with(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    if overrides.get("allocation.strategy", config.allocation.strategy) != config.allocation.strategy:
        changed.allocation.options = ConfigDict()  # those of another strategy
    changed.update_from_flattened_dict(overrides)
    return changed
