"""The console command: `gvm-jax NAME ...` is `python -m gvm_jax.NAME ...`; `gvm-jax --help` lists the names.

Nothing but the standard library is imported before the command itself.
"""

import difflib
import os
import runpy
import sys

COMMANDS = {  # module of gvm_jax -> what it does
    "train": "train a reasoner; the same command resumes",
    "evaluate": "score a model or a run's policy on benchmarks; the same command resumes",
    "inspect": "show a data set's rows as the model will see them, and what is dropped",
    "plan": "say whether a config fits a TPU or GPU topology, before paying for it",
    "compare": "train strategies side by side over seeds",
    "variance": "measure the variance of the strategies' gradient estimates",
    "report": "a table, plots and one page of HTML of a run, or of several together",
    "convert": "write a run's policy as a Hugging Face folder",
    "benchmark": "speed beside PyTorch's and JAX's engines, and agreement with PyTorch",
}
USAGE = "usage: gvm-jax COMMAND [--flag=value ...]"
WRONG_COMMAND = 2  # exit code, as for wrong flags


def help_text() -> str:
    """What `gvm-jax --help` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            USAGE,
            "",
            *(f"  {name:{width}}  {line}" for name, line in COMMANDS.items()),
            "",
            "`gvm-jax COMMAND --help` shows the flags of one. To begin, in the checkout's folder:",
            "",
            "  gvm-jax train --config=configs/quickstart.py --workdir=runs/quickstart",
        ]
    )


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(COMMANDS)}"
        problem = f"{name!r} is no command; {hint}" if name else f"a command is missing; {hint}"
        print(f"error: {problem} (gvm-jax --help)", file=sys.stderr)
        sys.exit(WRONG_COMMAND)
    sys.argv[1:] = arguments
    if os.getcwd() not in sys.path:  # as `python -m` does: configs/ is found from the checkout's folder
        sys.path.insert(0, os.getcwd())
    runpy.run_module(f"gvm_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
