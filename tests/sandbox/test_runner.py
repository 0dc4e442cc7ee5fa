"""What programs may do to themselves, what they try to do to others, and what tests of many kinds make of them."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from gvm_jax.sandbox import runner as run_module
from gvm_jax.sandbox.requirements import read
from gvm_jax.sandbox.runner import Unprotected, run
from tests.test_train import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by means of Linux")
MEMORY_BYTES = 256 * 2**20


@pytest.fixture
def root(tmp_path):
    """A folder for programs, of which nothing is left, nor of their processes."""
    folder = tmp_path / "programs"
    folder.mkdir()
    before = set(psutil.Process().children(recursive=True))
    others = sessions()
    yield folder
    assert os.listdir(folder) == []
    assert set(psutil.Process().children(recursive=True)) <= before
    assert sessions() <= others


def sessions() -> set[int]:
    """Processes of programs that this process started, orphans too; not those of tests that run beside it."""
    found = set()
    for process in psutil.process_iter():
        try:
            parents = [parent.pid for parent in process.parents()]
            mine = os.getpid() in parents or len(parents) <= 1  # an orphan's only parent is the first process
            if mine and any(part.endswith("sandbox/child.py") for part in process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def outcome(root, program, tests, seconds=10.0):
    return run(program, read(tests), str(root), seconds, MEMORY_BYTES)


RIGHT = [
    ("def f(x): return x + 1", "assert f(1) == 2\nassert f(-1) == 0"),
    ("def f(x): return [x, (x, {x: 'é'}), {x}, None, b'\\0', 1j, 2**100]",
     "assert f(1) == [1, (1, {1: 'é'}), {1}, None, b'\\0', 1j, 2**100] and type(f(1)[1]) is tuple"),
    ("def f(): return float('nan'), float('inf'), True", "a, b, c = f()\nassert a != a and b > 1e308 and c is True"),
    ("from collections import Counter\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
    ("def f(x): x.sort(); x.append(9)", "a = [3, 1]\nassert f(a) is None\nassert a == [1, 3, 9]"),
    ("def f(d): d['new'] = d.pop('old')", "d = {'old': 1}\nf(d)\nassert d == {'new': 1}"),
    ("def f(x, *, k=1): return x * k", "assert f(2, k=3) == 6"),
    ("def f(g, xs): return [g(x) for x in xs]",
     "assert f(lambda x: x * 2, [1, 2]) == [2, 4]\nassert f(abs, [-1]) == [1]"),
    ("def f(n):\n    for i in range(n): yield i",
     "assert list(f(3)) == [0, 1, 2]\ng = f(9)\nassert next(g) == 0 == next(g) - 1"),
    ("def f(x):\n    if x < 0: raise ValueError('low')\n    return x",
     "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'low'\nelse:\n    raise AssertionError"),
    ("class Odd(KeyError): pass\ndef f(): raise Odd(1)", "try:\n    f()\n    assert False\nexcept KeyError: pass"),
    ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
     "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
     "s = Stack()\ns.push(4)\nassert len(s) == 1 and s[0] == 4 and s.items == [4] and isinstance(s, Stack) and s"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
     "    def __add__(self, o): return P(self.x + o.x)",
     "assert (P(1) + P(2)).x == 3 and P(1) == P(1) and P(1) != P(2)\np = P(1)\np.x = 5\nassert p.x == 5"),
    ("from dataclasses import dataclass\n@dataclass\nclass Node:\n    value: int\n    next: 'Node' = None",
     "assert Node(1, Node(2)).next.value == 2"),
    ("def f(x): return x + 1",
     "from dataclasses import dataclass\n@dataclass\nclass Case:\n    x: 'int'\nassert f(Case(1).x) == 2"),
    ("import pickle\nclass Point: x = 1\ndef f(): return pickle.loads(pickle.dumps(Point())).x", "assert f() == 1"),
    ("class Node:\n    def __init__(self, next=None): self.next = next",
     "a = Node()\nb = Node(a)\nassert b.next is a and b.next in {a} and Node() is not a"),
    ("def f(x): return x[1:]", "assert f(range(2**70)) == range(1, 2**70) and f(range(5, 0, -2)) == range(3, 0, -2)"),
    ("LIMIT = 7", "assert LIMIT == 7"),
    ("def f(x): return x", "def test():\n    assert f(1) == 1\nif __name__ == '__main__':\n    test()"),
    ("import math, re, json, itertools, functools, heapq, decimal, datetime\ndef f(): return math.pi",
     "assert f() > 3"),
    ("def f(x): return x / 3", "import math\nassert math.isclose(f(1), 0.333, abs_tol=0.001)"),
    ("def f(x): return x", "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"),
    ("def f():\n    open('a', 'w').write('text')\n    return open('a').read()", "assert f() == 'text'"),
    ("def f():\n    import os\n    open('b' if os.path.exists('a') else 'a', 'w').close()\n    return os.listdir()",
     "assert f() == ['a'] and sorted(f()) == ['a', 'b']"),
    ("import random\ndef f(): return random.random()", "assert f() == 0.8444218515250481"),
    ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(900) == 900"),
    ("print('x' * 10**7)\ndef f(): return input", "assert callable(f())"),
    ("if __name__ == '__main__':\n    raise SystemExit(1)\ndef f(): return 1", "assert f() == 1"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "tests"), RIGHT)
def test_right_programs_pass(root, program, tests):
    assert outcome(root, program, tests) == ("passed", "")


WRONG = {
    "another value": ("def f(x): return x", "assert f(1) == 2"),
    "no such name": ("def g(x): return x", "assert f(1) == 1"),
    "no Python": ("def f(x) return x", "assert f(1) == 1"),
    "an exception": ("def f(x): return x / 0", "assert f(1) == 1"),
    "a module that is not there": ("import numpy\ndef f(x): return x", "assert f(1) == 1"),
    "exit before the tests": ("import sys\ndef f(x): return x\nsys.exit(0)", "assert f(1) == 1"),
    "exit at once": ("import os\nos._exit(0)", "assert f(1) == 1"),
    "exit in a test": ("import os\ndef f(x): os._exit(0)", "assert f(1) == 1"),
    "exit in a test that expects an error": (
        "import os\ndef f(x): os._exit(0)",
        "try:\n    f(1)\nexcept:\n    pass\ntry:\n    f(2)\nexcept BaseException:\n    pass"),
    "exit at the end": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
        "assert f(1) == 1"),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", "assert f(1) == 1"),
    "printing": ("print('passed')\ndef f(x): print('[\"passed\", \"\"]')", "assert f(1) == 1"),
    "holds everything": ("class A:\n    def __contains__(s, o): return True\ndef f(x): return A()",
        "assert 1 in f(1)"),
    "another len": ("import builtins\nbuiltins.len = lambda x: 3\nlen = builtins.len\ndef f(x): return []",
        "assert len(f(1)) == 3"),
    "another abs": ("def abs(x): return 0\ndef f(x): return 9", "assert abs(f(1) - 1) < 0.5"),
    "names that were not asked for": (
        "import __main__\n__main__.Program.present = lambda self, names: [*names, 'abs', '__builtins__']\n"
        "__main__.Program.value = lambda self, name: self._names.get(name, lambda x: 0)\ndef f(x): return 9",
        "assert abs(f(1) - 1) < 0.5"),
    "another assertion": ("import builtins\nbuiltins.AssertionError = int\ndef f(x): return 0", "assert f(1) == 1"),
    "an end of a loop": ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x, [1, 2]))"),
    "the frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name in ('tests', 'expected'):\n"
        "            if name in frame.f_locals or name in frame.f_globals: return 1\n"
        "        frame = frame.f_back\n    return 0",
        "expected = 1\nassert f(1) == expected"),
    "the garbage": (
        "import gc\ndef f(x): return int(any('SECRET' in repr(o)[:9] for o in gc.get_objects() if type(o) is dict))",
        "SECRET = 1\nassert f(1) == SECRET"),
    "the caller's variables": (
        "def f(g):\n    try: g.__globals__['ok'] = True\n    except Exception: pass\n"
        "    return g._peer.request('getattr', g, '__globals__')",
        "assert f(lambda: 1) == 1"),
    "forged messages": (
        "import os\ndef f(x):\n    message = b'[\"return\", 1, []]'\n    for fd in range(3, 64):\n"
        "        try: os.write(fd, len(message).to_bytes(4, 'big') * 3 + b'{' * 99)\n"
        "        except OSError: pass\n    return 0",
        "assert f(1) == 1"),
    "a huge answer": ("def f(x): return 'x' * 2**25", "assert f(1) == 1"),
    "a deep answer": ("def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a", "assert f(1) == 1"),
    "deep recursion": ("def f(x): return f(x + 1)", "assert f(1) == 1"),
    "deeper recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x + 1)", "assert f(1) == 1"),
    "memory": ("def f(x): return len(bytearray(2**30)) > 0", "assert f(1)"),
    "memory bit by bit": ("def f(x):\n    a = []\n    while True: a.append(bytes(2**20))", "assert f(1) == 1"),
    "a huge file": ("def f(x):\n    with open('a', 'wb') as file:\n"
        "        for _ in range(64): file.write(bytes(2**20))\n    return 1", "assert f(1) == 1"),
    "a value for a function that is called behind a guard": (
        "f = 1", "def test():\n    assert f(1) == 1\nif __name__ == '__main__':\n    test()"),
    "raised limits": ("import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "    return 1", "assert f(1) == 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_fail_whatever_they_do(root, name):
    verdict, reason = outcome(root, *WRONG[name])
    assert verdict == "failed" and reason, (verdict, reason)


SLOW = {
    "a loop": "def f(x):\n    while True: pass",
    "a loop at once": "while True: pass",
    "a sleep": "import time\ndef f(x): time.sleep(100)",
    "a loop that catches all": "def f(x):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
    "a loop that catches signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, lambda *_: None)\n"
        "    except (OSError, ValueError): pass\n"
        "def f(x):\n    while True: pass"),
    "a C call": "def f(x): return 9**9**9",
    "an endless iterator": "def f(x):\n    while True: yield 0",
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_programs_that_do_not_end_are_slow(root, name):
    start = time.monotonic()
    assert outcome(root, SLOW[name], "assert sum(f(1)) == 1", seconds=0.7).verdict == "slow"
    assert time.monotonic() - start < 5


def attempt(statement: str) -> tuple[str, str]:
    """A program that tries something, and a test that passes if it worked."""
    return f"def f(x):\n    {statement}\n    return 'worked'", "assert f(0) == 'worked'"


ESCAPES = {
    "a socket": "import socket; socket.socket()",
    "a Unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a connection": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "a download": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)",
    "fork": "import os; os.fork()",
    "several forks": "import os; [os.fork() for _ in range(3)]",
    "a command": "import subprocess; subprocess.run(['/bin/true'])",
    "a shell": "import os\n    assert os.system('true') == 0",
    "exec": "import os, sys; os.execv('/bin/true', ['true'])",
    "multiprocessing": "import multiprocessing; multiprocessing.Process(target=int).start()",
    "a thread": "import threading; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    # Signal 0 is sent to nobody: a sandbox that is broken does not end who tests it.
    "killing the parent": "import os; os.kill(os.getppid(), 0)",
    "killing all": "import os; os.kill(-1, 0)",
    "killing by a file's owner": "import fcntl, os; fcntl.fcntl(3, 8, os.getppid())",
    "ptrace": "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "a file of the home folder": "open('{home}/secret').read()",
    "the checkout": "open('{checkout}/README.md').read()",
    "the checkout's list": "import os; os.listdir('{checkout}')",
    "the accounts": "open('/etc/passwd').read()",
    "the parent's environment": "import os; open(f'/proc/{{os.getppid()}}/environ').read()",
    "its own memory": "open('/proc/self/mem', 'r+b')",
    "a file in the home folder": "open('{home}/made', 'w')",
    "a file in /tmp": "open('/tmp/gvm_jax_made', 'w')",
    "a file one up": "open('../made', 'w')",
    "another program's folder": "import os; os.listdir('..')",
    "overwriting": "open('{home}/secret', 'w')",
    "emptying by reading": "import os; os.open('{home}/secret', os.O_RDONLY | os.O_TRUNC)",
    "removing": "import os; os.unlink('{home}/secret')",
    "renaming": "import os; os.rename('{home}/secret', 'secret')",
    "a mode": "import os; os.chmod('{home}/secret', 0o777)",
    "an owner": "import os; os.chown('.', 1, 1)",
    "a link": "import os; os.link('{home}/secret', 'link')",
    "a symbolic link": "import os; os.symlink('{home}', 'link'); open('link/secret').read()",
    "a folder": "import os; os.mkdir('folder')",
    "a pipe on disk": "import os; os.mkfifo('pipe')",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'.', b'tmpfs', 0, None) == 0",
    "a namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "memory of its own name": "import os; os.memfd_create('a')",
    "root": "import os; os.setuid(0)",
    "a priority": "import os; os.nice(-5)",
    "a terminal": "open('/dev/tty', 'w')",
    # An open file without a name takes space that is not counted.
    "removing its own file": "import os; open('a', 'w').close(); os.unlink('a')",
    "replacing its own file": "import os; open('a', 'w').close(); open('b', 'w').close(); os.rename('a', 'b')",
    "a file without a name": "import os; os.open('.', os.O_RDWR | os.O_TMPFILE)",
    "a device": "open('/dev/vda', 'rb')",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_what_is_not_the_programs_own_is_out_of_reach(root, tmp_path, name):
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:  # connections wait in its backlog
        server.setblocking(False)
        fields = {"port": server.getsockname()[1], "home": home, "checkout": ROOT}
        verdict, reason = outcome(root, *attempt(ESCAPES[name].format(**fields)), seconds=5)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert verdict == "failed" and reason, (verdict, reason)
    assert os.listdir(home) == ["secret"] and (home / "secret").read_text() == "secret"
    assert (home / "secret").stat().st_mode & 0o777 != 0o777
    assert not os.path.exists("/tmp/gvm_jax_made") and not (root / "made").exists()


def test_the_attempts_work_where_nothing_confines(tmp_path):
    """So that a refusal above is not an error of the attempt itself."""
    (tmp_path / "secret").write_text("secret")
    harmless = (
        "a socket", "a command", "a shell", "fork", "the checkout", "the accounts", "a file of the home folder",
        "a folder", "a link", "a symbolic link", "a mode", "a pipe on disk", "memory of its own name",
        "removing its own file", "replacing its own file",
    )  # fmt: skip
    for name in harmless:
        program, _ = attempt(ESCAPES[name].format(port=0, home=tmp_path, checkout=ROOT))
        folder = tempfile.mkdtemp(dir=tmp_path)
        subprocess.run([sys.executable, "-c", f"{program}\nassert f(0) == 'worked'"], cwd=folder, check=True)


def test_many_files_end_the_program(root):
    flood = "def f(x):\n    for i in range(10**9):\n        with open(str(i), 'wb') as file: file.write(bytes(10**5))"
    verdict, reason = outcome(root, flood, "assert f(1) == 1")
    assert verdict == "failed" and "files" in reason


def test_a_folder_that_is_made_unreadable_is_removed(root):
    assert (
        outcome(root, "import os\nos.umask(0o777)\nopen('a', 'w').close()\ndef f(x): return x", "assert f(1) == 1")[0]
        == "passed"
    )


BROKEN = {
    "never calls": ("def test():\n    assert f(1) == 1", "never call"),
    "needs what is not there": ("import numpy\nassert f(1) == 1", "numpy"),
    "exits": ("f(1)\nraise SystemExit(0)", "end their process"),
    "cannot send": ("import math\nf(math)", "module"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tests_that_tell_nothing_are_told_apart(root, name):
    tests, words = BROKEN[name]
    verdict, reason = outcome(root, "def f(x): return x", tests)
    assert verdict == "broken" and words in reason


def test_a_lost_parent_takes_its_children_along(tmp_path):
    source = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from gvm_jax.sandbox.requirements import read
from gvm_jax.sandbox.runner import run
run("open('a', 'w').close()\\nwhile True: pass", read("f(1)"), {str(tmp_path)!r}, 60.0, 2**28)
"""
    before = sessions()
    parent = subprocess.Popen([sys.executable, "-c", source])
    end = time.monotonic() + 30
    while not list(tmp_path.glob("*/a")) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(sessions() - before) == 2
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while sessions() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not sessions() - before


@pytest.mark.parametrize(("missing", "words"), [("Landlock", "landlock among"), ("seccomp", "CONFIG_SECCOMP_FILTER")])
def test_a_missing_protection_is_an_error_with_its_remedy(root, tmp_path, monkeypatch, missing, words):
    folder = pathlib.Path(run_module.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        if file.name == "confine.py":  # asks for calls that this kernel does not have either
            number = {
                "Landlock": ("= 444, 445, 446", "= 9999, 9999, 9999"),
                "seccomp": ("libc.prctl, 22,", "libc.prctl, 9999,"),
            }
            assert number[missing][0] in text
            text = text.replace(*number[missing])
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(run_module, "_CHILD", tmp_path / "child.py")
    with pytest.raises(Unprotected, match=f"{missing} is not available here .*{words}"):
        outcome(root, "def f(x): return x", "assert f(1) == 1")
