"""`evaluate`: a policy's scores on data sets, from samples that are kept and never drawn twice."""

import functools
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, diff, from_json, validate
from gvm_jax.data import PromptSet
from gvm_jax.data.prompts import describe
from gvm_jax.evaluation.draw import draw
from gvm_jax.evaluation.scores import summarize
from gvm_jax.evaluation.store import SampleStore
from gvm_jax.models.qwen2 import Params
from gvm_jax.models.sharding import param_shardings
from gvm_jax.rollout.policy import Policy
from gvm_jax.runtime.checkpoint_files import best_step, restore_subtree
from gvm_jax.runtime.checksums import checksum
from gvm_jax.runtime.mesh import describe_devices
from gvm_jax.runtime.owner import Owner
from gvm_jax.runtime.preemption import StopSignal
from gvm_jax.runtime.workdir import workdir_path
from gvm_jax.training.sampler import Sampler

PROMPT_FIELDS = ("system_prompt", "user_template")  # of the section `data`


def evaluate(
    config: ConfigDict, workdir: pathlib.Path, paths: Sequence[str], checkpoint: str | None = None, step: str = "newest"
) -> dict[str, dict[str, Any]]:
    """Sample, grade and score each data set; samples that are in the workdir already are not drawn again.

    Args:
      config: a run's; its sections of training are not looked at.
      workdir: a folder for each data set, and `metrics.json`.
      paths: of the data sets. Those that are no short names have the other fields of `config.evaluation` and the
        columns of `config.data`.
      checkpoint: folder of a training run; None = the weights of `model.path`.
      step: of the checkpoint: a number, "newest" or "best".

    Returns:
      Summary by the data set's name.

    Raises:
      ConfigError, DataError, ModelError, OSError: bad input, or another evaluation's workdir.
      VerifierFailure: the grader failed on too many answers.
      Preempted: on SIGTERM or Ctrl-C; the answers so far are kept.
    """
    if step not in ("newest", "best") and not step.isdecimal():
        raise ConfigError(f"--step={step}: must be a number, newest or best")
    config = ConfigDict(config.to_dict())
    trained = _run_config(checkpoint) if checkpoint else None
    config.model.path = config.model.path or (trained.model.path if trained else "")
    config.evaluation.path, config.data.path = ",".join(paths), ",".join(paths)
    validate(config)
    names = data_set_names(paths)
    with StopSignal() as stop, Owner(workdir) as owner, Sampler(config, stop.check) as sampler:
        data_sets = {name: sampler.load_prompts("evaluation", path) for name, path in zip(names, paths, strict=True)}
        sampler.build()
        params, weights = _load_weights(sampler, checkpoint, step)
        settings = common_settings(sampler) | {"weights": weights}
        owner.take()
        stores = {
            name: SampleStore(
                workdir / name,
                {"questions": {"path": path, "number": len(prompts), "hash": prompts.fingerprint()}, **settings},
            )
            for path, (name, prompts) in zip(paths, data_sets.items(), strict=True)
        }
        stop.nothing_to_lose = False
        first = jax.process_index() == 0
        if first:
            print(*_describe(sampler, data_sets, weights, trained), f"workdir   {workdir}", "", sep="\n", flush=True)
        held = [params]
        del params  # the policy's may be a copy in another type
        load_policy = functools.cache(lambda: Policy(sampler.engine, held.pop()))
        summaries, begin = {}, time.perf_counter()
        for name, prompts in data_sets.items():
            records = draw(sampler, load_policy, prompts, stores[name], name)
            summaries[name] = summarize(records, config.evaluation.samples, sampler.grader.equivalent, config.seed)
        if first:
            print(f"took      {time.perf_counter() - begin:.0f} s\n")
            path = workdir / "metrics.json"
            path.write_text(json.dumps(summaries, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summaries


def common_settings(sampler: Sampler) -> dict[str, Any]:
    """All that a sample depends on beside its question and the weights. Slots, pages and devices change none."""
    config = sampler.config
    fields = {
        "data": (*PROMPT_FIELDS, "max_prompt_tokens"),
        "evaluation": ("samples", "temperature"),
        "rewards": ("function",),
        "rollout": ("max_new_tokens", "top_p", "top_k", "stop_tokens", "weight_dtype"),
    }
    chosen = {section: {name: config[section][name] for name in names} for section, names in fields.items()}
    model = {name: value for name, value in sampler.fingerprint.items() if name != "weights"}  # whose come apart
    model |= {"path": config.model.path, "compute_dtype": sampler.model.dtype.name}
    return {"seed": config.seed, "model": model, **chosen}


def data_set_names(paths: Sequence[str]) -> list[str]:
    """Folders of the data sets: `data/math500.jsonl` -> math500, `openai/gsm8k` -> gsm8k.

    Raises:
      ConfigError: two have the same name, or there is none.
    """
    names = [re.sub(r"[^\w.-]", "-", re.sub(r"\.(jsonl?|parquet|csv)$", "", pathlib.PurePath(p).name)) for p in paths]
    if not all(names):
        raise ConfigError("no data set is named: give --data=FILE or --config.evaluation.path=FILE")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--data={','.join(paths)}: two are called {min(twice)}; give each a --workdir of its own")
    return names


def _run_config(checkpoint: str) -> ConfigDict:
    path = workdir_path(checkpoint) / "config.json"
    if not path.exists():
        raise ConfigError(f"--checkpoint={checkpoint}: is not the folder of a run, which has a config.json")
    return from_json(path.read_text())


def _load_weights(sampler: Sampler, checkpoint: str | None, step: str) -> tuple[Params, dict[str, Any]]:
    """Parameters, and the identity by which another evaluation's are told apart."""
    if checkpoint is None:
        params, where = sampler.load_params(), {}
    else:
        number = {"newest": lambda: None, "best": lambda: best_step(checkpoint)}.get(step, lambda: int(step))()
        abstract = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding),
            sampler.model.abstract_params, param_shardings(sampler.model, sampler.mesh),
        )  # fmt: skip
        params, restored = restore_subtree(checkpoint, "params", abstract, number)
        where = {"checkpoint": checkpoint, "step": restored}
    return params, where | {"checksum": checksum(params)}


def _describe(
    sampler: Sampler, data_sets: Mapping[str, PromptSet], weights: Mapping[str, Any], trained: ConfigDict | None
) -> list[str]:
    """Model, data and sampling before the first sample, a line each."""
    config, engine = sampler.config, sampler.engine
    of = f", step {weights['step']} of {weights['checkpoint']}" if trained else ""
    lines = [f"model     {config.model.path}: {sampler.model_summary}{of}"]
    lines.append(sampler.describe_tokens())
    for name, prompts in data_sets.items():
        lines += [f"data      {name}: {len(prompts):,} questions", *describe(prompts)]
    if trained:
        own, trained_with = ({name: of.data[name] for name in PROMPT_FIELDS} for of in (config, trained))
        lines += [f"note      not the prompts it was trained with: data.{line}" for line in diff(trained_with, own)]
    temperature = f"temperature {config.evaluation.temperature:g}" if config.evaluation.temperature else "greedy"
    return [
        *lines,
        f"samples   {config.evaluation.samples} of each question, {temperature}, "
        f"at most {config.rollout.max_new_tokens} tokens",
        f"rollouts  {engine.replicas} × {engine.settings.slots} slots, attention {engine.kernels}, "
        f"weights {engine.weight_dtype}, KV cache {engine.cache_bytes / 2**20:.0f} MiB",
        f"devices   {describe_devices()}; mesh " + " x ".join(f"{k} {v}" for k, v in sampler.mesh.shape.items()),
    ]
