"""A run's scalars at Weights & Biases, beside its own files.

Off unless `wandb.project` names a project. W&B's own variables set everything else: `WANDB_MODE=offline` keeps the run
in the workdir until `wandb sync`, `WANDB_ENTITY` names its owner and `WANDB_RUN_GROUP` its group.
"""

import importlib
import os
import pathlib
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.runtime.metrics import tagged
from gvm_jax.runtime.workdir import workdir_path

_ID_FILE = "wandb_run_id"  # in the workdir: the same run goes on after a kill, at W&B too


def load_wandb(project: str) -> ModuleType | None:
    """W&B's package; None without a project.

    Raises:
      ConfigError: it is wanted and not installed.
    """
    if not project:
        return None
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"wandb.project = {project!r}: needs a package that cannot be imported ({error}); "
            "pip install -e '.[wandb]' in the checkout's folder, or leave the field empty"
        ) from error


class Tracker:
    """The run at W&B; for the first process alone.

    Steps are a metric of their own and not W&B's counter, which refuses the steps that a killed run does again.

    Args:
      wandb: what `load_wandb` returned.
      workdir: of the run; its path is the run's name.
      local: folder that takes W&B's files.
      config: of the run.

    Raises:
      ConfigError: W&B does not take the run: no key, no such entity, no network.
    """

    def __init__(self, wandb: ModuleType, workdir: os.PathLike[str], local: pathlib.Path, config: ConfigDict) -> None:
        project, name = config.wandb.project, os.fspath(workdir).rstrip("/").removeprefix("runs/")
        try:
            self._run = wandb.init(
                project=project, name=name, id=_run_id(workdir), resume="allow", dir=str(local),
                config=config.to_dict(), settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"wandb.project = {project!r}: {reason} (`wandb login` stores a key; WANDB_MODE=offline needs none)"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, Any], table: str = "metrics") -> None:
        """Sends a step's finite scalars, named as TensorBoard's."""
        self._run.log({"step": step, **tagged(scalars, table)})

    def close(self, complete: bool) -> None:
        """Waits until all is sent; a run that is not complete is shown as failed, until it is resumed."""
        self._run.finish(exit_code=0 if complete else 1)


def _run_id(workdir: os.PathLike[str]) -> str:
    """The id that the workdir keeps, made the first time."""
    file = workdir_path(workdir) / _ID_FILE
    if not file.exists():
        file.write_text(secrets.token_hex(8))
    return file.read_text().strip()
