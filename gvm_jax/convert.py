"""Export a run's policy as a Hugging Face folder: `python -m gvm_jax.convert --workdir=DIR --out=FOLDER`.

The folder holds safetensors (bfloat16 unless --dtype says otherwise), config, generation config and tokenizer with its
chat template, as transformers, vLLM and `model.path` of another run read them.
"""

import argparse
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from gvm_jax.config import ConfigError, from_json
from gvm_jax.data import DataError, load_tokenizer, stop_token_ids
from gvm_jax.models.config import ModelError, Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import DTYPES, save_params
from gvm_jax.runtime.checkpoint import restore_subtree
from gvm_jax.runtime.workdir import workdir_path


def convert(workdir: os.PathLike[str], out: pathlib.Path, dtype: str, step: int | None = None) -> int:
    """Write the parameters of a checkpoint, by default the newest, to `out`; returns the step they are from.

    Raises:
      FileNotFoundError: the workdir has no config or no checkpoint.
      DataError: its tokenizer does not know the run's `rollout.stop_tokens`.
      ModelError: the run's `model.path`, whose config and tokenizer are copied, is no longer there.
    """
    config_path = workdir_path(workdir) / "config.json"
    if not config_path.exists():
        raise FileNotFoundError(f"{config_path} is not there; --workdir must name the folder of a run")
    config = from_json(config_path.read_text())
    source = model_folder(config.model.path)
    if out.resolve() == source.resolve():
        raise ModelError(f"--out={out} is the run's own base model; name another folder")
    model = Model(Qwen2Config.from_folder(source))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), model.abstract_params)
    params, step = restore_subtree(workdir, "params", abstract, step)
    save_params(model, params, out, dtype, source)
    if config.rollout.stop_tokens:
        _end_at(config.rollout.stop_tokens, out)
    return step


def _end_at(stop_tokens: tuple[str, ...], folder: pathlib.Path) -> None:
    """Has the generation config end responses where training ended them, which the base model's does not know."""
    ids = stop_token_ids(load_tokenizer(str(folder)), str(folder), stop_tokens)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**settings, "eos_token_id": list(ids)}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse arguments and convert."""
    parser = argparse.ArgumentParser(prog="python -m gvm_jax.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=epath.Path, required=True, help="folder of a run, or gs://BUCKET/FOLDER")
    parser.add_argument("--step", type=int, help="a step whose checkpoint is kept; default the newest")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="type of the written weights")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    try:
        step = convert(arguments.workdir, arguments.out, arguments.dtype, arguments.step)
    except (ConfigError, DataError, OSError, ModelError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote step {step} to {arguments.out} ({arguments.dtype})")


if __name__ == "__main__":
    main()
