"""Compare strategies: `python -m gvm_jax.compare --config=configs/quickstart.py --strategies=uniform,gvm --seeds=5`.

The first strategy is the baseline. All is equal but what an entry says: `gvm:allocation.options.alpha=1e-2` sets one,
`gvm+updates` switches a confound on (gvm_jax/lab/variants.py). `--sweep=allocation.options.alpha:1e-4,1e-3,1e-2` and
`--confounds=updates,clip` add such entries; `--config.section.field=value` is for all. Each run is an ordinary run's
folder, WORKDIR/VARIANT/seed-K. Seeds take turns over the variants, and the same command goes on where it was stopped.
"""

import pathlib
import sys

from absl import flags, logging
from etils import epath

from gvm_jax import command, report
from gvm_jax.config import ConfigError
from gvm_jax.lab.compare import compare_strategies
from gvm_jax.lab.variants import CONFOUNDS
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.runtime.preemption import EXIT_CODE, Preempted
from gvm_jax.train import train

_STRATEGIES = flags.DEFINE_list(
    "strategies", None, "Entries; the first is the baseline. Default: uniform and the config's.", allow_override=True
)  # of variance too
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each variant: the seeds from config.seed on.")
_SWEEP = flags.DEFINE_string("sweep", "", "FIELD:VALUE,VALUE,... for every entry but the baseline.")
_CONFOUNDS = flags.DEFINE_list("confounds", [], f"Some of {', '.join(CONFOUNDS)}: each alone, and all together.")
_TARGET = flags.DEFINE_float("target", None, "Held-out accuracy to reach. Default: 90 % of the baseline's gain.")


def main() -> None:
    """Parse flags, train, report."""
    workdir = pathlib.Path(command.workdir("compare-"))
    logging.set_verbosity(logging.WARNING)
    try:
        with command.one_line(VerifierFailure, FloatingPointError):
            if "://" in (command.given_workdir() or ""):
                raise ConfigError(f"--workdir={command.given_workdir()}: a comparison's must be a local folder")
            keep_programs()
            tables = compare_strategies(
                command.config(), workdir, train, _STRATEGIES.value, seeds=_SEEDS.value, sweep=_SWEEP.value,
                confounds=_CONFOUNDS.value, target=_TARGET.value, title=command.config_name(),
            )  # fmt: skip
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)
    page, *_ = report.write(report.read_runs(sorted(workdir.glob("*/seed-*"))), epath.Path(workdir) / "plots")
    print(f"\n{tables}\n\nreport      {workdir / 'comparison.md'} and .json\npage        {page}")


if __name__ == "__main__":
    command.run(main)
