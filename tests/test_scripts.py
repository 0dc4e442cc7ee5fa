"""The shell scripts with a stand-in interpreter that records what it is asked to do."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / "tpu_scripts"
STAND_IN = f"""#!/bin/sh
case "$1 $2" in
  "-c "*) exec {sys.executable} "$@" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$@" >> "$CALLS" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts in a folder with a space in its name, and a stand-in interpreter."""
    root = tmp_path / "a checkout"
    shutil.copytree(SCRIPTS, root / "tpu_scripts")
    (root / "setup.py").write_text("# stand-in\n")
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return root


def run(script, *arguments, root=None, **options):
    """The finished process, and the calls of the interpreter."""
    root = root or script.parent.parent
    calls = root.parent / "calls"
    calls.write_text("")
    variables = {"PYTHON": str(root.parent / "python"), "CALLS": str(calls)} | options.pop("variables", {})
    environment = {name: value for name, value in os.environ.items() if name != "VENV"} | variables
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, **options)
    return done, calls.read_text().splitlines()


def test_train_without_arguments_installs_and_runs_the_quickstart(checkout):
    done, calls = run(checkout / "tpu_scripts/train.sh")
    assert done.returncode == 0, done.stderr
    assert "pip install" in calls[0] and str(checkout) in calls[0]
    assert calls[1] == f"-m gvm_jax.train --config={checkout}/configs/quickstart.py"
    done, calls = run(checkout / "tpu_scripts/train.sh", "--config=x.py", "--workdir=y")
    assert calls == ["-m gvm_jax.train --config=x.py --workdir=y"], "installed again"


def test_both_scripts_share_one_environment(checkout):
    run(checkout / "tpu_scripts/train.sh")
    ruff = next(checkout.glob(".venv*")) / "bin/ruff"
    ruff.write_text("#!/bin/sh\n")
    ruff.chmod(0o755)
    done, calls = run(checkout / "tpu_scripts/test.sh", "-k", "x")
    assert done.returncode == 0, done.stderr
    assert "[test]" in calls[0] and calls[-1].startswith("-m pytest ") and calls[-1].endswith(" -k x")
    for script in ("train.sh", "test.sh"):
        assert not any("pip" in call for call in run(checkout / "tpu_scripts" / script)[1])


def test_a_symbolic_link_from_elsewhere_works(checkout, tmp_path):
    (tmp_path / "link").symlink_to(checkout / "tpu_scripts/train.sh")
    done, _ = run(tmp_path / "link", root=checkout, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_interpreter_that_does_not_do_is_named(checkout):
    done, _ = run(checkout / "tpu_scripts/train.sh", variables={"PYTHON": "/bin/false"})
    assert done.returncode == 2 and "PYTHON=/bin/false is not a Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("extra", ["tpu", "cuda"])
def test_the_accelerator_of_the_machine_is_installed_for_and_said(extra, checkout):
    # An accelerator_extra of the test's own: /dev/accel0 cannot be had here.
    commands = f'. "{checkout}/tpu_scripts/common.sh"; accelerator_extra() {{ echo {extra}; }}; activate_environment'
    done, calls = run("bash", "-euc", commands, root=checkout)
    assert done.returncode == 0, done.stderr
    assert f"Installing gvm_jax with [{extra}]" in done.stderr and f"-e {checkout}[{extra}]" in calls[0]
