"""The commands: their names, their help, and one line with exit code 2 for a mistake."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys

import pytest
from absl.testing import flagsaver

import gvm_jax
from gvm_jax import command
from gvm_jax.__main__ import COMMANDS, MODULES
from gvm_jax.config import ConfigError
from gvm_jax.data import DataError
from gvm_jax.models.config import ModelError
from gvm_jax.report import read_runs, side_by_side
from gvm_jax.rewards.verdicts import VerifierFailure, VerifierRefused
from gvm_jax.runtime.checkpoint_files import NoCheckpoint
from gvm_jax.train import next_command
from gvm_jax.training.inputs import every_input_error
from tests.test_train import ROOT, environment, small_config

FILES = {
    "syntax.py": "def get_config():\n    config = (3\n",
    "field.py": "from gvm_jax.config import get_config as d\ndef get_config():\n    c = d()\n    c.optimizer.lr = 1",
    "section.py": "from gvm_jax.config import get_config as d\ndef get_config():\n    return d().optimzer\n",
    "import.py": "import nonsense\n",
    "value.py": "def get_config():\n    return int('x')\n",
    "none.py": "x = 3\n",
    "argument.py": "def get_config():\n    return None\n",
    "own.py": "from gvm_jax.config import get_config as d\ndef get_config():\n    c = d()\n    c.allocation.options."
    "power = 0.5\n    return c\n",
}
OWN = "--config={folder}/"
QUICKSTART = "--config=configs/quickstart.py"

MISTAKES = {
    "": "--config is missing: give --config=configs/quickstart.py; --help lists the flags",
    "--config.steps=3": "--config is missing: give --config=configs/quickstart.py; --help lists the flags",
    "--config=nope.py": "--config=nope.py: no such file; name one of configs/",
    "--config=configs/quikstart.py --config.steps=3": "no such file; did you mean configs/quickstart.py?",
    "--confi=3": "Unknown command line flag 'confi'. Did you mean: config ?",
    f"{QUICKSTART}:rafft": f"{QUICKSTART}:rafft: argument 'rafft' of the config file: must be one of raft, gvm_raft, "
    "grpo, gvm_grpo; did you mean raft?",
    f"{QUICKSTART} --config.stepz=3": "--config.stepz: no such field; did you mean --config.steps?",
    f"{QUICKSTART} --config.optimizer.lr 1": "--config.optimizer.lr: no such field; did you mean "
    "--config.optimizer.learning_rate?",
    f"{QUICKSTART} --noconfig.objective.mask_truncatd": "did you mean --config.objective.mask_truncated?",
    f"{QUICKSTART} --config.xyzzy=1": "no such field; `gvm-jax config` lists the fields",
    f"{QUICKSTART} --config.steps=x": "--config.steps=x: must be an integer >= 1",
    f"{QUICKSTART} --config.steps": "--config.steps=: must be an integer >= 1",
    f"{QUICKSTART} --config.objective.mask_truncated=maybe": "=maybe: must be True or False",
    f"{QUICKSTART} --config.data=gsm8k": "a section; set a field of it, such as --config.data.path=gsm8k",
    f"{QUICKSTART} --config.allocation.options=1": "a section; set a field of it, such as "
    "--config.allocation.options.NAME=1",
    f"{QUICKSTART} --workdir=": "--workdir= is empty; name a folder",
    f"{QUICKSTART} x": "unexpected argument 'x'; options are written --name=value",
    OWN + "syntax.py": "/syntax.py, line 2: '(' was never closed",
    OWN + "field.py": "/field.py, line 4: the config has no field optimizer.lr; did you mean optimizer.learning_rate?",
    OWN + "section.py": "/section.py, line 3: the config has no field optimzer; did you mean optimizer?",
    OWN + "import.py": "/import.py, line 1: ModuleNotFoundError: No module named 'nonsense'",
    OWN + "value.py": "/value.py, line 2: ValueError: invalid literal for int() with base 10: 'x'",
    OWN + "none.py": "the file defines no get_config()",
    OWN + "argument.py": "get_config() returns None; it must return the config",
    OWN + "argument.py:raft": "its get_config() does not fit the argument 'raft'",
    OWN + "own.py --config.allocation.options.power=x": "allocation.options.power = 'x': ",
}


@pytest.fixture
def parse(tmp_path):
    """A function that parses flags as a command does and returns the config."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def parse(flags: str, required=("config",)):
        command.parse(parse, required, ["command", *flags.format(folder=tmp_path).split()])
        return command.config()

    with flagsaver.flagsaver(config=None, workdir=None):
        yield parse


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(flags, parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and MISTAKES[flags] in line


def test_all_mistyped_fields_are_told_at_once(parse, capsys):
    with pytest.raises(SystemExit):
        parse(f"{QUICKSTART} --config.stepz=3 --config.steps=x --config.data=gsm8k")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == [
        "--config.steps?", "1", "--config.data.path=gsm8k"
    ]  # fmt: skip


def test_fields_are_set_as_written(parse):
    config = parse(f"{QUICKSTART}:grpo --config.steps 7 --config.objective.mask_truncated --config.rollout.top_p=1")
    assert (config.steps, config.objective.mask_truncated, config.objective.algorithm) == (7, True, "grpo")
    assert type(config.rollout.top_p) is float
    config = parse(f"{QUICKSTART} --noconfig.objective.mask_truncated --config.data.exclude=('math500','aime24')")
    assert config.data.exclude == ("math500", "aime24") and config.objective.mask_truncated is False


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("1e-3", 1e-3), ("4", 4), ("true", True), ("mean", "mean")])
def test_an_option_of_a_strategy_keeps_its_type(text, value, parse):
    options = parse(f"{QUICKSTART} --config.allocation.options.power={text}").allocation.options
    assert options.to_dict() == {"power": value} and type(options.power) is type(value)


def test_an_option_of_the_config_file_gives_the_type(parse):
    assert type(parse(OWN + "own.py --config.allocation.options.power=2").allocation.options.power) is float


def test_a_config_that_is_shipped_is_found_from_every_folder(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(QUICKSTART).steps == 30 and parse("--config=configs/qwen25_math_7b.py:raft").steps == 100


def test_help_and_version_end_well(parse, capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as end:
            parse(f"{QUICKSTART} {flag}")
        assert not end.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("The commands: their names, their help") and "--config.FIELD=VALUE" in shown
    assert shown.endswith(f"\ngvm_jax {gvm_jax.__version__}\n")


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
def test_refused_input_ends_with_2_and_a_failure_with_1(error, code, capsys):
    with pytest.raises(SystemExit) as end, command.one_line(VerifierFailure, FloatingPointError):
        raise error
    assert str(end.value) == f"error: {error}", "other processes of the run are told the text"
    said = capsys.readouterr().err
    # Python itself prints a text, and ends with 1.
    assert (end.value.code, said) == ((2, f"error: {error}\n") if code == 2 else (f"error: {error}", ""))


# Runs `gvm-jax` with each line of its input, each in a process of its own that need not import JAX again.
CONSOLE = """
import contextlib, importlib, io, json, os, sys
for name in ("flax.nnx", "orbax.checkpoint", "transformers", "optax", "gvm_jax.rewards"):
    importlib.import_module(name)
from gvm_jax import __main__ as console

for line in sys.stdin:
    read, write = os.pipe()
    if os.fork() == 0:
        sys.argv, out, errors, code = ["gvm-jax", *json.loads(line)], io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out):
            try:
                console.main()
            except SystemExit as end:
                code = end.code or 0
        os.write(write, json.dumps([code, out.getvalue(), errors.getvalue()]).encode())
        os._exit(0)
    os.close(write)
    print(open(read).read(), flush=True)
    os.wait()
"""
REFUSED = {
    "evaluate {quickstart} {workdir} --config.evaluation.path=": "no benchmark is named",
    "evaluate {quickstart} {workdir} --data=math500 --step=last": "--step=last: must be a number, newest or best",
    "variance {quickstart} {workdir} --samples=0": "--samples=0: ",
    "train {quickstart} {workdir} --config.model.path=no/such/folder": "model.path='no/such/folder' is not a folder",
    "train {workdir} --config.data.path=no_such.jsonl": "data.path = 'no_such.jsonl': there is no such file",
    "inspect {quickstart} --row=10000000": "--row=10000000: ",
    "plan {quickstart} --topology=h100:1 --prompt_tokens=0": "--prompt_tokens=0: ",
    "plan {quickstart}": "--topology is missing: give --topology=VALUE",
    "benchmark --model=x --rollout=page": "",
    "benchmark": "--model is missing",
    "benchmark --workdir=x": "Unknown command line flag 'workdir'",
    "convert {workdir} --out=x": "must name the folder of a run",
    "report {folder}/run": "/run: is not the folder of a run",
    "config optimzer": "'optimzer' is no section of the config; did you mean optimizer?",
    "trian": "'trian' is no command; did you mean train? (gvm-jax --help)",
    "": "a command is missing; must be one of train, ",
}
SHOWN = ["--help", "--version", "config mesh", "plan --help", "benchmark --help"]


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """Exit code, output and errors of each command line above, and the folder of their workdir."""
    folder = tmp_path_factory.mktemp("console")
    fields = {"quickstart": QUICKSTART, "workdir": f"--workdir={folder}/run", "folder": folder}
    lines = [*REFUSED, *SHOWN]
    done = subprocess.run(
        [sys.executable, "-c", CONSOLE], cwd=ROOT, env=environment(), capture_output=True, text=True,
        input="\n".join(json.dumps(line.format(**fields).split()) for line in lines),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True)), folder


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_flag_or_value_ends_every_command_with_2_and_writes_nothing(line, console):
    (code, _, errors), folder = console[0][line], console[1]
    assert code == 2 and errors.count("\n") == 1, errors
    assert errors.startswith("error: ") and REFUSED[line] in errors and not (folder / "run").exists()


def test_help_lists_the_commands_and_the_flags_of_one(console):
    shown = {line: console[0][line][1] for line in SHOWN}
    for name in COMMANDS:
        assert importlib.util.find_spec(f"gvm_jax.{MODULES.get(name, name)}") and f"\n  {name} " in shown["--help"]
    assert shown["--version"] == f"gvm_jax {gvm_jax.__version__}\n" and shown["config mesh"].startswith("mesh.data = ")
    flags = {
        name: [line.split()[0].partition("=")[0] for line in shown[name].splitlines() if line.startswith("  --")]
        for name in ("plan --help", "benchmark --help")
    }
    assert flags["plan --help"][:3] == ["--config", "--config.FIELD", "--topology"]
    assert "--[no]search" in flags["plan --help"] and "--workdir" not in flags["plan --help"]
    assert flags["benchmark --help"][0] == "--model" and "--config" not in flags["benchmark --help"]


def test_the_list_of_commands_imports_none_of_them():
    command_line = [sys.executable, "-X", "importtime", "-m", "gvm_jax", "--help"]
    listed = subprocess.run(command_line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert listed.returncode == 0 and "| jax\n" not in listed.stderr and "absl" not in listed.stderr


def test_errors_in_fields_strategy_model_and_data_are_told_at_once(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "2+2?", "answer": "\\\\"}\n' * 2)
    wrong = {"allocation.strategy": "gmv", "model.path": str(tmp_path), "data.path": str(tmp_path / "own.jsonl")}
    wrong |= {"evaluation.path": "no.jsonl", "mesh.data": 3, "data.problem_column": "question"}
    config = small_config(**wrong)
    with pytest.raises(ConfigError) as raised, every_input_error(config):
        raise DataError("no test is to read this")
    header, *problems = [line.strip() for line in str(raised.value).splitlines()]
    assert header == "the run cannot start:"
    for problem, start in zip(
        problems,
        [
            "no test",
            "allocation.strategy = 'gmv'",
            "model.path=",
            "data.path = ",
            "evaluation.path = ",
            "optimizer.micro",
        ],
        strict=True,
    ):
        assert problem.startswith(start)
    config.steps = 0
    with pytest.raises(ConfigError, match=r"^the run cannot start:\n  steps = 0: must be an integer >= 1\n  alloc"):
        with every_input_error(config):
            raise ConfigError("steps = 0")
    with pytest.raises(DataError, match="alone"), every_input_error(small_config()):
        raise DataError("alone")


@pytest.mark.slow
def test_an_installed_package_trains_the_quickstart_in_an_empty_folder(tmp_path):
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    for name in ("gvm_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The files of a wheel, by the same command of setuptools that fills one; it needs no other package.
    build = [sys.executable, "setup.py", "-q", "build", f"--build-lib={site}"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    flags = ["--config.steps=2", "--config.evaluation.path=", "--config.rollouts_per_step=128"]
    environ = environment() | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gvm_jax", "train", *flags], cwd=empty, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    recorded = json.loads((empty / "runs/quickstart/config.json").read_text())
    assert recorded["model"]["path"] == str(site / "gvm_jax/configs/quickstart_model")
    assert len((empty / "runs/quickstart/metrics.jsonl").read_text().splitlines()) == 2
    assert "gvm_jax.train --config=configs/quickstart.py:raft" in done.stdout


def test_next_is_what_was_not_run_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["train", "--config=configs/q.py", "--config.steps=3", "--config.allocation.strategy=cures"]
    )

    def run(folder):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")

    run("runs/q")
    assert next_command("configs/q.py", None).startswith(
        f"{sys.executable} -m gvm_jax.train --config=configs/q.py:raft"
    )
    run("tpu_scripts/train.sh")
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


def test_next_can_be_pasted_into_a_shell(monkeypatch):
    given = ["--config.steps", "3", "--noconfig.objective.mask_truncated", "--config.data.exclude=('a b',)"]
    monkeypatch.setattr(sys, "argv", ["train", "--config", "configs/q.py", *given, "--workdir=x y"])
    words = shlex.split(next_command("configs/q.py", "x y"))
    assert words[1:] == ["--config=configs/q.py:raft", *given, "--workdir=x y-raft"]


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
