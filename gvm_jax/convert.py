"""Export a run's policy as a Hugging Face folder: `python -m gvm_jax.convert --workdir=DIR --out=FOLDER`.

The folder holds safetensors, config and tokenizer, as transformers, vLLM and `model.path` of another run read them.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import logging

from gvm_jax.config import from_json
from gvm_jax.models.config import ModelError, Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import DTYPES, save_params
from gvm_jax.runtime.checkpoint import restore_subtree


def convert(workdir: pathlib.Path, out: pathlib.Path, dtype: str) -> int:
    """Write the newest checkpoint's parameters to `out`; returns the step they are from.

    Raises:
      FileNotFoundError: the workdir has no config or no checkpoint.
      ModelError: the run's `model.path`, whose config and tokenizer are copied, is no longer there.
    """
    config_path = workdir / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{config_path} is not there; --workdir must name the folder of a run")
    source = model_folder(from_json(config_path.read_text(encoding="utf-8")).model.path)
    if out.resolve() == source.resolve():
        raise ModelError(f"--out={out} is the run's own base model; name another folder")
    model = Model(Qwen2Config.from_folder(source))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), model.abstract_params)
    params, step = restore_subtree(workdir, "params", abstract)
    save_params(model, params, out, dtype, source)
    return step


def main() -> None:
    """Parse arguments and convert."""
    parser = argparse.ArgumentParser(prog="python -m gvm_jax.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of a run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="type of the written weights")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    try:
        step = convert(arguments.workdir, arguments.out, arguments.dtype)
    except (OSError, ModelError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote step {step} to {arguments.out} ({arguments.dtype})")


if __name__ == "__main__":
    main()
