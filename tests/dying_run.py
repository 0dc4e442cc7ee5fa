"""A training run that kills itself: `dying_run.py MOMENT COUNT [flags of gvm_jax.train]`.

It dies by SIGKILL when it comes to a moment for the COUNT-th time; at the moment "any", COUNT milliseconds after its
first step began.
"""

import os
import signal
import sys
import threading

from absl import flags
from orbax.checkpoint import CheckpointManager

from gvm_jax import command, train
from gvm_jax.rewards import Grader
from gvm_jax.rollout import policy
from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.runtime.metrics import MetricsWriter
from gvm_jax.training.journal import Journal
from gvm_jax.training.trainer import Trainer


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def tear_a_line(writer, name, step, values):
    with (writer._workdir / f"{name}.jsonl").open("a") as file:
        file.write('{"step": ')
    die()


def die_soon(*_, **__):
    threading.Timer(0.003, die).start()
    return KEPT(*_, **__)


# Where, the method, and what it does instead of its work.
MOMENTS = {
    "rollout": (policy._Call, "advance", die),
    "grading": (Grader, "collect", die),
    "evaluation": (Trainer, "evaluate", die),
    "update": (Trainer, "update", die),
    "during the update": (Trainer, "update", die_soon),
    "before the record": (Journal, "step", die),
    "in a record's line": (MetricsWriter, "_append", tear_a_line),
    "before saving": (Checkpointer, "save", die),
    "at the start of saving": (CheckpointManager, "save", die_soon),
    "at the commit": (CheckpointManager, "_finalize_checkpoint", die),
    "after saving": (CheckpointManager, "_finalize", die_soon),
}

if __name__ == "__main__":
    moment, count = sys.argv[1], int(sys.argv[2])
    if moment == "any":
        KEPT = Trainer.collect

        def collect(run, state):
            timer, Trainer.collect = threading.Timer(count / 1000, die), KEPT
            timer.daemon = True
            timer.start()
            return KEPT(run, state)

        Trainer.collect = collect
    elif moment != "never":
        owner, name, act = MOMENTS[moment]
        KEPT = getattr(owner, name)

        def counted(*args, **kwargs):
            global count
            count -= 1
            return (KEPT if count else act)(*args, **kwargs)

        setattr(owner, name, counted)
    sys.argv[1:3] = []
    flags.DEFINE_string("profile", "", "Defined by gvm_jax.train where it is the command.")
    command.run(train.main)
