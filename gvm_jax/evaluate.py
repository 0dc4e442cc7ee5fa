"""Score a model on benchmarks: `python -m gvm_jax.evaluate --config=configs/evaluate.py --data=FILE --checkpoint=RUN`.

Draws config.evaluation.samples answers of each question, grades them, and prints avg@k, pass@k and maj@k with 95 %
intervals. The model is `--config.model.path`, or a training run's policy with --checkpoint. Every answer is kept in
WORKDIR/DATA_SET/samples.jsonl as soon as it is graded; the same command goes on where it was stopped.
"""

import pathlib
import sys

import jax
import rich
from absl import flags, logging
from ml_collections import ConfigDict

from gvm_jax import command
from gvm_jax.config import ConfigError
from gvm_jax.evaluation.evaluate import evaluate
from gvm_jax.evaluation.scores import table_rows
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime import distributed
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.runtime.preemption import EXIT_CODE, Preempted
from gvm_jax.runtime.progress import final_table
from gvm_jax.training.journal import MAX_TRUNCATED

_DATA = flags.DEFINE_list("data", None, "Data sets, named as config.evaluation.path is. Default: that one.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a training run whose policy is scored, in place of the weights of model.path.",
    allow_override=True,
)  # of variance too  # fmt: skip
_STEP = flags.DEFINE_string("step", "newest", "Step of the checkpoint: a number, newest, or best (held out).")


def main() -> None:
    """Parse flags, evaluate, report."""
    config, workdir = command.config(), command.workdir("evaluate-")
    logging.set_verbosity(logging.WARNING)
    # Errors of the start; the others are caught inside, where all processes hear them.
    with command.one_line(), distributed.start(config.distributed):
        _run(config, workdir)


def _run(config: ConfigDict, workdir: str) -> None:
    try:
        with command.one_line(VerifierFailure):
            if "://" in workdir:
                raise ConfigError(f"--workdir={workdir}: an evaluation's must be a local folder")
            paths = _DATA.value or [config.evaluation.path]
            if not any(paths):
                raise ConfigError(
                    "no benchmark is named: give --data=math500,gsm8k or --data=FILE; --help lists the flags"
                )
            if not _CHECKPOINT.value and not config.model.path:
                raise ConfigError(
                    "no model is named: give --config.model.path=FOLDER, or --checkpoint=WORKDIR of a run"
                )
            keep_programs()
            summaries = evaluate(config, pathlib.Path(workdir), paths, _CHECKPOINT.value, _STEP.value)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)
    if jax.process_index() == 0:
        rich.print(final_table(table_rows(summaries)))
        for name in summaries:
            print(f"samples     {workdir}/{name}/samples.jsonl")
        print(f"metrics     {workdir}/metrics.json")
        for name, summary in summaries.items():
            if summary["cut_off"] > MAX_TRUNCATED:
                print(
                    f"note        {name}: {summary['cut_off']:.0%} of the answers were cut at rollout.max_new_tokens = "
                    f"{config.rollout.max_new_tokens}; raise it if they needed more"
                )


if __name__ == "__main__":
    command.run(main)
