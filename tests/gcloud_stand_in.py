"""Answers as `gcloud compute tpus` does where pod.sh calls it; a pod's workers are processes on this machine.

A pod is a folder of $CLOUD: `state`, `address` (where its JAX processes meet) and a home folder for each worker. Every
call is appended to $CLOUD/calls. Exit codes and the words NOT_FOUND are those of gcloud.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

WORKERS = 2


def processes_of(home: pathlib.Path) -> list[int]:
    """Everything that runs with this home folder; a process that has ended shows no environment."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"HOME={home}".encode() in environment:
                found.append(int(folder.name))
    return found


def kill(home: pathlib.Path) -> None:
    """Ends a worker as a power cut does."""
    while found := processes_of(home):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def preempt(pod: pathlib.Path) -> None:
    """Takes a pod away."""
    (pod / "state").write_text("SUSPENDED")
    for home in pod.glob("worker-*"):
        kill(home)
        shutil.rmtree(home)


def main(arguments: list[str]) -> int:
    cloud = pathlib.Path(os.environ["CLOUD"])
    with (cloud / "calls").open("a") as calls:
        print(*arguments, file=calls)
    options = dict(re.fullmatch(r"--([a-z-]+)=?(.*)", a, re.DOTALL).groups() for a in arguments if a.startswith("--"))
    (compute, tpus, group, verb, *positional) = [a for a in arguments if not a.startswith("--")]
    assert (compute, tpus) == ("compute", "tpus") and options.pop("zone") == "us-test1-a"
    pod = cloud / positional[-1].partition(":")[0]
    if verb != "create" and not (pod / "state").exists():
        print(f"ERROR: (gcloud.compute.tpus.{verb}) NOT_FOUND: Resource was not found", file=sys.stderr)
        return 1
    return {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm scp": scp,
        "tpu-vm ssh": ssh,
    }[f"{group} {verb}"](pod, options, *positional)


def create(pod, options, name) -> int:
    assert options == {
        "node-id": name,
        "accelerator-type": "v6e-8",
        "runtime-version": "v2-alpha-tpuv6e",
        "spot": "",
    }, options
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pod.mkdir()
    for worker in range(WORKERS):
        (pod / f"worker-{worker}").mkdir()
    (pod / "address").write_text(address)
    (pod / "state").write_text("WAITING_FOR_RESOURCES")
    return 0


def describe(pod, options, name) -> int:
    if options == {"format": "value(state.state)"}:
        state = (pod / "state").read_text()
        print(state)
        if state == "WAITING_FOR_RESOURCES":  # the next one is luckier
            (pod / "state").write_text("ACTIVE")
    return 0


def delete(pod, options, name) -> int:
    assert options == {"force": "", "quiet": ""}, options
    preempt(pod)
    shutil.rmtree(pod)
    return 0


def scp(pod, options, source, target) -> int:
    assert options == {"worker": "all"}, options
    for home in workers(pod, "all"):
        shutil.copy(source, home / target.partition(":")[2])
    return 0


def workers(pod, which) -> list[pathlib.Path]:
    if (pod / "state").read_text() != "ACTIVE":
        sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm) the TPU is not READY")
    return [pod / f"worker-{worker}" for worker in (range(WORKERS) if which == "all" else [int(which)])]


def ssh(pod, options, name) -> int:
    running = []
    for home in workers(pod, options["worker"]):
        environment = os.environ | {
            "HOME": str(home),
            "HOSTNAME": home.name,
            "JAX_COORDINATOR_ADDRESS": (pod / "address").read_text(),
            "JAX_NUM_PROCESSES": str(WORKERS),
            "JAX_PROCESS_ID": home.name.removeprefix("worker-"),
        }
        running.append(subprocess.Popen(["bash", "-c", options["command"]], cwd=home, env=environment))
    return max(abs(process.wait()) for process in running)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
