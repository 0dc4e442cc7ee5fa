"""Export a run's policy as a Hugging Face folder: `python -m gvm_jax.convert --workdir=DIR --out=FOLDER`.

The folder holds safetensors (bfloat16 unless --dtype says otherwise), config, generation config and tokenizer with its
chat template, as transformers, vLLM and `model.path` of another run read them.
"""

import argparse
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gvm_jax import command
from gvm_jax.config import ConfigError, from_json
from gvm_jax.data import find_endings, load_tokenizer
from gvm_jax.models.config import ADAPTER, ModelError, Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import DTYPES, save_params
from gvm_jax.runtime.checkpoint_files import restore_subtree
from gvm_jax.runtime.workdir import workdir_path
from gvm_jax.training import fingerprints


def convert(
    workdir: os.PathLike[str],
    out: pathlib.Path,
    dtype: str = "bfloat16",
    step: int | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the parameters of a checkpoint, by default the newest, to `out`; returns the step they are from.

    Args:
      workdir: of the run.
      out: folder to write.
      dtype: of the weights, a name of `DTYPES`.
      step: of the checkpoint; None = the newest.
      base: the run's base model, whose config and tokenizer are copied, where `model.path` no longer names it.
      overwrite: `out` may hold a model already.

    Raises:
      ConfigError: the workdir has no config, or the base model is another one than the run's.
      NoCheckpoint: the workdir has no checkpoint.
      DataError: its tokenizer does not know the run's `rollout.stop_tokens`.
      ModelError: the base model is not there, or `out` holds files that are no model's, or a model without `overwrite`.
    """
    _check_out(out, overwrite)
    config = run_config(workdir)
    if base is not None:
        config.model.path = base
    try:
        source = model_folder(config.model.path)
    except ModelError as error:
        moved = "" if base else "; if the run's base model has moved, give --model=FOLDER"
        raise ModelError(f"{error}{moved}") from error
    if out.resolve() == source.resolve():
        raise ModelError(f"--out={out} is the run's own base model; name another folder")
    network = Qwen2Config.from_folder(source)
    found = {"model": fingerprints.of_model(network, load_tokenizer(str(source)))}
    check = functools.partial(fingerprints.check, found, config=config, workdir=workdir)
    model = Model(network)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), model.abstract_params)
    params, step = restore_subtree(workdir, "params", abstract, step, check)
    save_params(model, params, out, dtype, source)
    _end_at(config.rollout.stop_tokens, out, model.config.vocab_size)
    return step


def _check_out(out: pathlib.Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ModelError(f"--out={out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    held = out / "config.json"
    try:
        models = not held.exists() or "model_type" in json.loads(held.read_text(encoding="utf-8"))
    except ValueError:
        models = False
    if (out / ADAPTER).exists():
        raise ModelError(f"--out={out} holds an {ADAPTER}, which would be applied to the model; name another folder")
    if not models:
        raise ModelError(f"--out={out} holds a config.json that is no model's, perhaps a run's; name another folder")
    if not overwrite:
        raise ModelError(f"--out={out} is not empty; name another folder, or give --overwrite to replace its model")


def run_config(workdir: os.PathLike[str]) -> ConfigDict:
    """The config of a run; ConfigError where there is none."""
    path = workdir_path(workdir) / "config.json"
    if not path.exists():
        raise ConfigError(f"{path} is not there; --workdir must name the folder of a run")
    return from_json(path.read_text())


def _end_at(stop_tokens: tuple[str, ...], folder: pathlib.Path, vocab_size: int) -> None:
    """Has the generation config end responses where training ended them, which the base model's does not know."""
    ids = find_endings(load_tokenizer(str(folder)), str(folder), vocab_size, stop_tokens).stop_ids
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    named = settings.get("eos_token_id")
    if set(named if isinstance(named, list) else [named]) != set(ids):
        file.write_text(json.dumps({**settings, "eos_token_id": list(ids)}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse arguments and convert."""
    parser = argparse.ArgumentParser(prog="python -m gvm_jax.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=epath.Path, required=True, help="folder of a run, or gs://BUCKET/FOLDER")
    parser.add_argument("--step", type=int, help="a step whose checkpoint is kept; default the newest")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--model", help="the run's base model, where its config's model.path no longer names it")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="type of the written weights")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    with command.one_line():
        step = convert(
            arguments.workdir, arguments.out, arguments.dtype, arguments.step, arguments.model, arguments.overwrite
        )
    print(f"wrote step {step} to {arguments.out} ({arguments.dtype})")
    data = run_config(arguments.workdir).data
    if (data.system_prompt, data.user_template) != ("", "{problem}"):
        print("trained on prompts that the folder's chat template alone does not make:")
        print(f"  data.system_prompt = {data.system_prompt!r}\n  data.user_template = {data.user_template!r}")


if __name__ == "__main__":
    main()
