"""Programs kept on disk: where, how many, and what happens where nothing can be written."""

import pathlib

import pytest

from gvm_jax.runtime import compilation_cache
from tests.runtime import processes

# Compiles a program as a command does; says whether it was found, where programs are kept, and its result's bits.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from gvm_jax.runtime import compilation_cache
from tests.runtime import processes
if sys.argv[3:]:
    jax.distributed.initialize(sys.argv[3], num_processes=1, process_id=0)
compilation_cache.LEAST_SECONDS = 0.0
compilation_cache.MOST_BYTES = int(sys.argv[2])
compilation_cache.keep_programs()
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event) if event.endswith("cache_hits") else None)
size = int(sys.argv[1])
x = jnp.asarray([i / 7 for i in range(size)])
found.clear()
result = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) / jnp.sum(x * x + 1))(x)
print(len(found), jax.config.jax_compilation_cache_dir, float(result).hex())
"""


class Answer:
    def __init__(self, done):
        assert done.returncode == 0, done.stderr
        self.errors = done.stderr
        found, self.folder, self.result = done.stdout.split()
        self.found = found != "0"


def compile_program(home, size=64, most=2**30, coordinator=(), **variables):
    variables = {"XDG_CACHE_HOME": str(home)} | variables
    return Answer(processes.run(PROGRAM, size, most, *coordinator, clear=("JAX_", "XDG_"), **variables))


def test_a_second_process_finds_the_program_and_computes_the_same_bits(tmp_path):
    first, second = compile_program(tmp_path), compile_program(tmp_path)
    folder = tmp_path / "gvm_jax/programs"
    assert first.folder == second.folder == str(folder) and folder.stat().st_mode & 0o077 == 0
    assert not first.found and second.found and first.result == second.result
    assert first.errors == second.errors == ""
    off = compile_program(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0")
    assert off.folder == "None" and not off.found and off.result == first.result


def test_a_folder_of_ones_own_is_taken_as_jax_takes_it(tmp_path):
    own = compile_program(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert own.folder == str(tmp_path / "own") and not (tmp_path / "gvm_jax").exists()


def test_a_run_of_several_processes_keeps_none(tmp_path):
    alone = [processes.free_address()]
    assert compile_program(tmp_path, coordinator=alone).folder == "None" and not (tmp_path / "gvm_jax").exists()


def test_a_write_that_was_cut_short_is_mended(tmp_path):
    compile_program(tmp_path)
    folder = tmp_path / "gvm_jax/programs"
    for time in folder.glob("*-atime"):
        program = time.with_name(time.name.replace("-atime", "-cache"))
        program.write_bytes(program.read_bytes()[:100])
        time.unlink()
    again = compile_program(tmp_path)
    assert not again.found and again.errors == ""
    assert compile_program(tmp_path).found


def test_the_folder_stays_within_its_size(tmp_path):
    compile_program(tmp_path)
    folder = tmp_path / "gvm_jax/programs"

    def held():
        return sum(file.stat().st_size for file in folder.glob("*-cache"))

    most = held() + 100
    compile_program(tmp_path, size=65, most=most)
    assert 0 < held() <= most and compile_program(tmp_path, size=65, most=most).found


def test_where_nothing_can_be_written_it_is_said_once(tmp_path):
    (tmp_path / "gvm_jax").write_text("a file in the place of the folder")
    answer = compile_program(tmp_path)
    assert answer.folder == "None" and answer.errors.count("\n") == 1
    assert answer.errors.startswith("note: compiled programs are not kept (") and "gvm_jax" in answer.errors


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        compilation_cache._make_ready(tmp_path / "programs")
    assert [file.name for file in (tmp_path / "programs").iterdir()] == [".lockfile"]


@pytest.mark.parametrize("given", ["", "relative/folder"])
def test_without_an_absolute_xdg_folder_it_is_that_of_the_home(given, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", "/home/someone")
    assert compilation_cache.default_folder() == pathlib.Path("/home/someone/.cache/gvm_jax/programs")
