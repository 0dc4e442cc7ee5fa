"""One process at a time owns a workdir, by whatever path it comes and however the one before ended."""

import json
import os
import re
import signal

import pytest
from etils import epath

from gvm_jax.config import ConfigError
from gvm_jax.runtime import owner as owner_module
from gvm_jax.runtime.owner import Owner, OwnerError
from tests.runtime import processes

# Holds the workdir until it is told to go on, or killed, with a child that outlives it.
HOLDER = """
import os, sys, time
from gvm_jax.runtime.owner import Owner

os.setsid()
with Owner(sys.argv[1]) as owner:
    owner.take()
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(request):
    """Starts a process that holds a workdir, in a session of its own."""

    def start(folder):
        process = processes.start(HOLDER, folder)
        request.addfinalizer(lambda: os.killpg(process.pid, signal.SIGKILL))
        assert process.stdout.readline() == "held\n"
        return process

    return start


def test_a_second_process_is_refused_with_who_holds_it(tmp_path, hold):
    folder, link = tmp_path / "run", tmp_path / "link"
    link.symlink_to(folder)
    holder = hold(folder)
    said = rf"is held by process {holder.pid} on {re.escape(os.uname().nodename)} since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    for path in (folder, link, f"{folder}/../run"):
        with pytest.raises(ConfigError, match=rf"--workdir=.*run.*{said}" if path != link else said) as raised:
            Owner(path).__enter__()
        assert "\n" not in str(raised.value) and "another --workdir" in str(raised.value)
    with pytest.raises(ConfigError, match=said), Owner(folder):
        pytest.fail("entered")


@pytest.mark.parametrize("end", ["killed", "done"])
def test_a_holder_that_has_ended_never_blocks(tmp_path, hold, end):
    holder = hold(tmp_path)
    if end == "killed":
        holder.kill()  # its child goes on
    else:
        holder.stdin.close()
    holder.wait(20)
    with Owner(tmp_path) as owner:
        owner.take()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_a_folder_that_is_not_there_is_made_by_take_alone(tmp_path):
    with Owner(tmp_path / "a/run") as owner:
        assert not (tmp_path / "a").exists()
        owner.take()
        owner.take()
        assert (tmp_path / "a/run/lock").exists()
        owner.check()


def test_only_the_first_process_of_a_run_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(owner_module.collectives, "is_first", lambda: False)
    with Owner(tmp_path) as owner:
        owner.take()
    assert not os.listdir(tmp_path)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(owner_module.fcntl, "lockf", no_locks)
    with Owner(tmp_path):
        assert "has no locks (No locks available): nothing keeps a second process" in caplog.text


def test_in_an_object_store_the_run_that_came_last_owns_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(owner_module, "workdir_path", lambda _: Remote(tmp_path))
    with Owner("gs://bucket/run") as first:
        assert not os.listdir(tmp_path)
        first.take()
        first.check()
        assert not caplog.records
        with Owner("gs://bucket/run") as second:
            second.take()
            assert f"was held by process {os.getpid()} on" in caplog.text and "has not ended by itself" in caplog.text
            second.check()
            with pytest.raises(OwnerError, match=rf"was taken over by process {os.getpid()} on .* so this run ends"):
                first.check()
        assert not os.listdir(tmp_path), "a run that ends by itself leaves no word"
        with pytest.raises(OwnerError, match="lost its object `lock`"):
            first.check()
    assert not os.listdir(tmp_path)


class Remote:
    """A folder that calls itself a store's."""

    def __init__(self, path):
        self._path = epath.Path(path)

    def __fspath__(self):
        return f"gs://bucket{self._path}"

    def __str__(self):
        return self.__fspath__()

    def __truediv__(self, name):
        return self._path / name
