"""The commands from the shell: their names, their help, and one line with exit code 2 for a mistake."""

import json
import shlex
import subprocess
import sys

import pytest

from gvm_jax import command
from gvm_jax.__main__ import COMMANDS
from gvm_jax.config import RULES, ConfigError, nearest_field
from gvm_jax.data import DataError
from gvm_jax.models.config import ModelError
from gvm_jax.report import read_runs, side_by_side
from gvm_jax.rewards.verdicts import VerifierFailure, VerifierRefused
from gvm_jax.runtime.checkpoint_files import NoCheckpoint
from gvm_jax.train import next_command
from tests.test_train import ROOT, environment

# Parses the flags of each line of its input as a command does, each in a process of its own.
PARSE = """
import contextlib, io, json, os, sys
from gvm_jax import command

def main():
    print(f"ran with {command.config().steps} steps")

for line in sys.stdin:
    read, write = os.pipe()
    if os.fork() == 0:
        sys.argv, errors, code = ["command", *json.loads(line)], io.StringIO(), 0
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            try:
                command.run(main)
            except SystemExit as end:
                code = end.code or 0
        os.write(write, json.dumps([code, errors.getvalue()]).encode())
        os._exit(0)
    os.close(write)
    print(open(read).read(), flush=True)
    os.wait()
"""

FILES = {
    "syntax.py": "def get_config():\n    config = (3\n",
    "field.py": "from gvm_jax.config import get_config as d\ndef get_config():\n    c = d()\n    c.optimizer.lr = 1",
    "section.py": "from gvm_jax.config import get_config as d\ndef get_config():\n    return d().optimzer\n",
    "import.py": "import nonsense\n",
    "value.py": "def get_config():\n    return int('x')\n",
    "none.py": "x = 3\n",
    "argument.py": "def get_config():\n    return None\n",
}
OWN = "--config={folder}/"
QUICKSTART = "--config=configs/quickstart.py"

MISTAKES = {
    "": "--config is missing: give --config=configs/quickstart.py; --help lists the flags",
    "--config=nope.py": "--config=nope.py: no such file; name one of configs/",
    "--config=configs/quikstart.py": "no such file; did you mean configs/quickstart.py?",
    "--config=configs/quikstart.py --config.steps=3": "no such file; did you mean configs/quickstart.py?",
    "--config.steps=3": "--config is missing, whose field is to be set: give --config=configs/quickstart.py",
    "--confi=3": "Unknown command line flag 'confi'. Did you mean: config ?",
    f"{QUICKSTART}:rafft": "argument 'rafft' of the config file: must be one of raft, gvm_raft, grpo, gvm_grpo; "
    "did you mean raft?",
    "--config configs/quickstart.py:rafft": "--config=configs/quickstart.py:rafft: argument 'rafft' of the config file",
    f"{QUICKSTART} --config.stepz=3": "--config.stepz: no such field; did you mean --config.steps?",
    f"{QUICKSTART} --config.optimzer.learning_rate=1": "did you mean --config.optimizer.learning_rate?",
    f"{QUICKSTART} --config.optimizer.lr 1": "--config.optimizer.lr: no such field; did you mean "
    "--config.optimizer.learning_rate?",
    f"{QUICKSTART} --noconfig.objective.mask_truncatd": "did you mean --config.objective.mask_truncated?",
    f"{QUICKSTART} --config.xyzzy=1": "no such field; gvm_jax/config/defaults.py lists the known ones",
    f"{QUICKSTART} --config.steps=x": "--config.steps=x: must be an integer >= 1",
    f"{QUICKSTART} --config.objective.mask_truncated=maybe": "=maybe: must be True or False",
    f"{QUICKSTART} --config.data=gsm8k": "a section; set a field of it, such as --config.data.path=gsm8k",
    f"{QUICKSTART} --workdir=": "--workdir= is empty; name a folder",
    f"{QUICKSTART} x": "unexpected argument 'x'; options are written --name=value",
    OWN + "syntax.py": "/syntax.py, line 2: '(' was never closed",
    OWN + "field.py": "/field.py, line 4: the config has no field optimizer.lr; did you mean optimizer.learning_rate?",
    OWN + "section.py": "/section.py, line 3: the config has no field optimzer; did you mean optimizer?",
    OWN + "import.py": "/import.py, line 1: ModuleNotFoundError: No module named 'nonsense'",
    OWN + "value.py": "/value.py, line 2: ValueError: invalid literal for int() with base 10: 'x'",
    OWN + "none.py": "the file defines no get_config()",
    OWN + "argument.py:raft": "its get_config() does not fit the argument 'raft'",
}
GOOD = [f"{QUICKSTART} --config.steps=7 --noconfig.objective.mask_truncated", f"{QUICKSTART}:grpo --config.steps 7"]


def call(*arguments, **options):
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    """Exit code and output of every line of flags above."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    lines = [*MISTAKES, *GOOD]
    flags = "\n".join(json.dumps(line.format(folder=folder).split()) for line in lines)
    done = call(sys.executable, "-c", PARSE, input=flags)
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(flags, parsed):
    code, output = parsed[flags]
    (line,) = output.splitlines()
    assert code == 2 and line.startswith("error: ") and MISTAKES[flags] in line


@pytest.mark.parametrize("flags", GOOD)
def test_right_flags_run(flags, parsed):
    assert parsed[flags] == [0, "ran with 7 steps\n"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("steps = 0"), 2),
        (DataError("no such file"), 2),
        (ModelError("no config.json"), 2),
        (NoCheckpoint("no checkpoint of step 3"), 2),
        (VerifierRefused("no such function"), 2),
        (VerifierFailure("too many timeouts"), 1),
        (FloatingPointError("not finite"), 1),
        (OSError("the disk is full"), 1),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_what_is_refused_ends_with_2_and_what_failed_with_1(error, code, capsys):
    with pytest.raises(SystemExit) as end, command.one_line(VerifierFailure, FloatingPointError):
        raise error
    assert str(end.value) == f"error: {error}", "what other processes are told"
    said = capsys.readouterr().err
    # Python itself prints a text, and ends with 1.
    assert (end.value.code, said) == ((2, f"error: {error}\n") if code == 2 else (f"error: {error}", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate {quickstart} --config.evaluation.path=", "error: no benchmark is named"),
        ("evaluate {quickstart} --data=math500 --step=last", "error: --step=last: must be a number, newest or best"),
        ("variance {quickstart} --samples=0", "error: --samples=0: "),
        ("train {quickstart} --config.model.path=no/such/folder", "error: "),
        ("train {quickstart} --config.data.path=no_such.jsonl", "error: "),
        ("inspect {quickstart} --row=10000000", "error: --row=10000000: "),
        ("plan {quickstart} --topology=h100:1 --prompt_tokens=0", "error: --prompt_tokens=0: "),
        ("benchmark --model=x --rollout=page", "error: "),
    ],
)
def test_a_wrong_flag_or_value_ends_every_command_with_2(arguments, message, tmp_path):
    name, *flags = arguments.format(quickstart=QUICKSTART).split()
    if name in ("train", "evaluate", "variance"):
        flags.append(f"--workdir={tmp_path / 'run'}")
    done = call(sys.executable, "-m", f"gvm_jax.{name}", *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_field_is_the_nearest_to_its_own_name():
    assert all(nearest_field(name) == name for name in RULES)


@pytest.mark.parametrize(
    ("mistyped", "field"),
    [
        ("lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("Optimizer.LR", "optimizer.learning_rate"),
        ("rollout.max_tokens", "rollout.max_new_tokens"),
        ("max_new_tokens", "rollout.max_new_tokens"),
        ("data.pth", "data.path"),
        ("evaluation.pth", "evaluation.path"),
        ("qwertyuiop", None),
    ],
)
def test_a_mistyped_field_is_told_the_nearest(mistyped, field):
    assert nearest_field(mistyped) == field


def test_the_console_command_is_the_module_with_its_own_arguments(tmp_path):
    done = call(sys.executable, "-m", "gvm_jax", "convert", f"--workdir={tmp_path}", "--out=x")
    again = call(sys.executable, "-m", "gvm_jax.convert", f"--workdir={tmp_path}", "--out=x")
    assert done.returncode == again.returncode == 2
    assert done.stderr == again.stderr != "" and "must name the folder of a run" in done.stderr


def test_the_console_command_lists_the_others_and_imports_none():
    listed = call(sys.executable, "-X", "importtime", "-m", "gvm_jax", "--help")
    assert listed.returncode == 0 and all(f"\n  {name} " in listed.stdout for name in COMMANDS)
    assert "| jax\n" not in listed.stderr and "absl" not in listed.stderr
    wrong = call(sys.executable, "-m", "gvm_jax", "trian")
    assert wrong.returncode == 2 and wrong.stderr == (
        "error: 'trian' is no command; did you mean train? (gvm-jax --help)\n"
    )


def test_the_help_of_a_command_has_its_flags_and_no_others():
    done = call(sys.executable, "-m", "gvm_jax.plan", "--help")
    assert done.returncode == 0 and done.stdout.startswith("Does it fit? `python -m gvm_jax.plan --config=")
    shown = [line.split()[0].partition("=")[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert shown == [
        *("--config", "--config.FIELD", "--topology"),
        *("--[no]search", "--data_rows", "--prompt_tokens", "--response_tokens"),
    ]


def test_a_command_without_a_config_has_its_flags_and_no_others():
    done = call(sys.executable, "-m", "gvm_jax.benchmark", "--help")
    assert done.returncode == 0 and done.stdout.startswith("This project beside its peers: `python -m gvm_jax.bench")
    assert "--model=VALUE" in done.stdout and "--config" not in done.stdout and "--workdir" not in done.stdout
    missing, other = (call(sys.executable, "-m", "gvm_jax.benchmark", *flags) for flags in ([], ["--workdir=x"]))
    assert missing.returncode == other.returncode == 2
    assert "error: --model is missing" in missing.stderr
    assert "error: Unknown command line flag 'workdir'" in other.stderr


def test_a_flag_of_its_own_that_is_missing_is_named():
    done = call(sys.executable, "-m", "gvm_jax.plan", QUICKSTART)
    assert done.returncode == 2 and "error: --topology is missing: give --topology=VALUE" in done.stderr


def test_the_report_of_no_run_says_so(tmp_path):
    done = call(sys.executable, "-m", "gvm_jax.report", str(tmp_path))
    assert done.returncode == 2 and f"error: {tmp_path}: is not the folder of a run" in done.stderr


def test_next_is_what_was_not_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--config=configs/q.py", "--config.steps=3"])

    def run(folder):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")

    run("runs/q")
    start = "tpu_scripts/train.sh --config=configs/q.py:"
    assert next_command("configs/q.py", None) == start + "raft --config.steps=3"
    assert next_command("configs/q.py", "runs/x/") == start + "raft --config.steps=3 --workdir=runs/x-raft"
    both = f"{sys.executable} -m gvm_jax.report runs/q runs/q-raft"
    assert next_command("configs/q.py:raft", None) == both, "q.py alone is the run with gvm_raft"
    assert next_command("configs/q.py:grpo", None) == start + "gvm_grpo --config.steps=3"
    run("runs/q-gvm_grpo")
    assert next_command("configs/q.py:grpo", None).endswith("report runs/q-gvm_grpo runs/q-grpo")
    assert next_command("configs/q.py:exact", None).endswith("report runs/q-exact")
    run("x")
    assert next_command("configs/q.py:raft", "x-raft").endswith("report x x-raft")
    run("y")
    assert next_command("configs/q.py:raft", "y") == start + "gvm_raft --config.steps=3 --workdir=y-gvm_raft"


def test_next_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--config.steps", "3", "--noconfig.objective.mask_truncated", "--config.data.exclude=('a b',)"]
    monkeypatch.setattr(sys, "argv", ["train", "--config", "configs/q.py", *given, "--workdir=x y"])
    assert shlex.split(next_command("configs/q.py", "x y"))[1:] == [
        "--config=configs/q.py:raft",
        *given,
        "--workdir=x y-raft",
    ]


def test_several_runs_are_reported_in_one_table(tmp_path):
    for name, tokens in (("a", 1000), ("b", 2500)):
        (tmp_path / name).mkdir()
        line = {"step": 1, "reward/accept_rate": 0.5}
        line |= {f"total/{total}": tokens for total in ("prompts", "rollouts", "sampled_tokens", "trained_tokens")}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line | {"total/updates": 2}) + "\n")
    (tmp_path / "b/evaluation.jsonl").write_text(json.dumps({"step": 0, "accuracy": 0.25}) + "\n")
    rows = {row.pop(""): list(row.values()) for row in side_by_side(read_runs([tmp_path / "a", tmp_path / "b"]))}
    assert rows["sampled tokens"] == ["1,000", "2,500"]
    assert rows["held-out accuracy after step 0"] == ["", "0.250"]
