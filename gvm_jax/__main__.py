"""The console command: `gvm-jax NAME ...` is `python -m gvm_jax.NAME ...`; `gvm-jax --help` lists the names.

Nothing but the standard library is imported before the command itself.
"""

import difflib
import os
import runpy
import sys

import gvm_jax

COMMANDS = {  # name -> what it does
    "train": "train a reasoner (the quickstart's by default); the same command resumes",
    "evaluate": "score a model or a run's policy on benchmarks; the same command resumes",
    "config": "list the fields of a config with their defaults, allowed values and meanings",
    "inspect": "show rows of a data set as the model sees them, and the rows that are dropped",
    "plan": "tell whether a config fits a TPU or GPU topology, before paying for it",
    "compare": "train allocation strategies side by side over several seeds",
    "variance": "measure the variance of the strategies' gradient estimates",
    "report": "make a table, plots and an HTML page of a run, or of several together",
    "convert": "write a run's policy as a Hugging Face folder",
    "benchmark": "measure speed beside PyTorch's and JAX's engines, and agreement with PyTorch",
}
MODULES = {"inspect": "inspect_data"}  # modules of gvm_jax whose names are not their commands'
WRONG_COMMAND = 2  # exit code, as for wrong flags


def help_text() -> str:
    """The output of `gvm-jax --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return f"""usage: gvm-jax COMMAND [--flag=value ...]

{commands}

`gvm-jax COMMAND --help` shows the flags of a command, `gvm-jax --version` the version. To begin:

  gvm-jax train --config=configs/quickstart.py --workdir=runs/quickstart"""


def main() -> None:
    """Runs the command that the first argument names."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return
    if name == "--version":
        print(f"gvm_jax {gvm_jax.__version__}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(COMMANDS)}"
        problem = f"{name!r} is no command; {hint}" if name else f"a command is missing; {hint}"
        print(f"error: {problem} (gvm-jax --help)", file=sys.stderr)
        sys.exit(WRONG_COMMAND)
    sys.argv[1:] = arguments
    if os.getcwd() not in sys.path:  # as `python -m` does: a user's modules are found
        sys.path.insert(0, os.getcwd())
    runpy.run_module(f"gvm_jax.{MODULES.get(name, name)}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
