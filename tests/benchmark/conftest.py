"""The quickstart's tokenizer, and an engine that needs no model."""

import pathlib
import sys

import pytest

from gvm_jax.benchmark.workloads import Texts
from gvm_jax.data import load_tokenizer

MODEL = pathlib.Path(__file__).parent.parent.parent / "configs/quickstart_model"
QUESTIONS = ["12+34+5", "7+8", "99+1+23", "5+6"]
ANSWERS = ["46;#46", "15;#15", "123", "11", "1;2;3;#3", "9", "12+12", "#7"]
FAKE = """
import os, pathlib, subprocess, sys, threading
from server import Engine


class Fake(Engine):
    configured, packages = "as told", ("pip",)

    @staticmethod
    def environment():
        return {"OF_THE_ENGINE": "yes"}

    def __init__(self, workload):
        print("noise of a library")
        self.told, self.calls = workload["told"], []
        if self.told == "missing":
            import no_such_package
        if self.told == "dies":
            os._exit(3)
        here = pathlib.Path(sys.argv[2]).parent
        len(b"x" * int(1e8))  # held for a moment
        self.child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 50_000_000; print(len(x)); input()"],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.child.stdout.readline()
        threading.Thread(target=self.spin, daemon=True).start()
        self.peers = here / "pids"
        self.peers.mkdir(exist_ok=True)
        (self.peers / str(os.getpid())).touch()

    def spin(self):
        while True:
            pass

    def warm_up(self):
        self.calls.append("warm_up")

    def run(self, counts, seed):
        os.write(1, b"more noise\\n")
        self.calls.append(seed)
        if self.told == "fails" and seed == 2:
            raise RuntimeError("out of cake")
        others = [p.name for p in self.peers.iterdir() if p.name != str(os.getpid())]
        files = [pathlib.Path("/proc", pid, "stat") for pid in others]
        states = [file.read_text().split(") ")[1][0] for file in files if file.exists()]
        extra = self.told == "one too many"
        return {"lengths": [4] * (sum(counts) + extra), "others": states, "calls": self.calls, "pid": os.getpid(),
                "child": self.child.pid, "path": os.environ.get("PYTHONPATH"), "set": os.environ["OF_THE_ENGINE"]}
"""


@pytest.fixture(scope="session")
def texts():
    """A few sums, with texts as answers, for the quickstart's tokenizer."""
    return Texts(load_tokenizer(str(MODEL)), QUESTIONS, ANSWERS, [16])


@pytest.fixture
def fake(tmp_path):
    """(task, interpreter) of an engine that does as the setting `told` says."""
    script = tmp_path / "fake_engine.py"
    script.write_text(FAKE)
    return f"{script}:Fake", sys.executable
