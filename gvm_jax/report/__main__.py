"""`python -m gvm_jax.report WORKDIR [WORKDIR ...] [--out=FOLDER]`: a table, plots and a page of runs."""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from etils import epath

from gvm_jax import command, report
from gvm_jax.report.records import folder_of_all
from gvm_jax.runtime.workdir import workdir_path


def runs_of(workdirs: Sequence[str]) -> list[str]:
    """The folders that are runs'; ends the command if none is, or one is not there.

    `runs/*` names folders of evaluations and pages too: they are left out with a word.
    """
    runs = [workdir for workdir in workdirs if (workdir_path(workdir) / "config.json").exists()]
    for workdir in workdirs:
        if workdir not in runs:
            if not runs or not workdir_path(workdir).exists():
                _refuse(workdir)
            print(f"left out    {workdir}: not the folder of a run", file=sys.stderr)
    return runs


def _refuse(workdir: str) -> NoReturn:
    path = workdir_path(workdir)
    inside = sorted([*path.glob("*/config.json"), *path.glob("*/*/config.json")]) if path.exists() else []
    given = f"give those in it, such as {inside[0].parent}" if inside else "give a --workdir of training"
    command.fail(f"{workdir}: is not the folder of a run, which has a config.json; {given}")


def default_out(workdirs: list[str]) -> epath.Path:
    """Where a page of several runs goes if nothing is said: plots/A+B/ of the innermost folder that has them all.

    Other runs have another page. Where their names make no folder's, or a long one, it has the first and a checksum.
    """
    if not (folder := folder_of_all(workdirs)):
        command.fail("--out is missing: these runs lie in no folder together; give --out=FOLDER for the page")
    inside = [os.fspath(workdir_path(workdir)).removeprefix(f"{folder}/") for workdir in workdirs]
    name = "+".join(inside)
    if len(name) > 80 or not all(re.fullmatch(r"[\w.-]+", each) for each in inside):
        first, checksum = re.sub(r"[^\w.-]", "-", inside[0])[:60], hashlib.sha256(json.dumps(inside).encode())
        name = f"{first}+{len(inside) - 1}-{checksum.hexdigest()[:8]}"
    return epath.Path(folder) / "plots" / name


def main() -> None:
    """Show one run, or several side by side."""
    parser = argparse.ArgumentParser(
        prog="python -m gvm_jax.report",
        description="A table, plots and one page of HTML, which needs no network, of one run or of several together.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run, or gs://BUCKET/FOLDER")
    parser.add_argument(
        "--out", help="where page and plots go; default: plots/ of the run, or plots/A+B/ of the folder that has both"
    )
    arguments = parser.parse_args()
    with command.one_line():
        workdirs = runs_of(list(dict.fromkeys(arguments.workdirs)))
        if len(workdirs) == 1:
            report.show(epath.Path(workdirs[0]), arguments.out)
        else:
            report.show_several(workdirs, arguments.out or default_out(workdirs))


if __name__ == "__main__":
    main()
