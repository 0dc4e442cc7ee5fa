"""Compiled programs kept on disk: a run that resumes, or another of the same shapes, compiles none of them again.

The folder is `gvm_jax/programs` in $XDG_CACHE_HOME, by default ~/.cache; the least recently used programs leave it
where it would hold more than `MOST_BYTES`. JAX's own variables say otherwise: JAX_COMPILATION_CACHE_DIR=FOLDER, of
whatever size they say, and JAX_ENABLE_COMPILATION_CACHE=0 for none.

A program is found by its text, its compiler and the kind of its devices, a CPU's instructions among it, and is the very
code that was compiled before: results keep their bits. JAX warns of an entry that cannot be read or written, and
compiles. A run of several processes keeps none here: only process 0 would write, and compile nothing while the others
do; name a folder that all of them share.
"""

import os
import pathlib
import sys

import filelock
import jax
from etils import epath

MOST_BYTES = 2 * 2**30
LEAST_SECONDS = 0.2  # of a compilation that is worth a file
_LOCK = ".lockfile"  # JAX's
_LOCK_SECONDS = 5.0


def default_folder() -> pathlib.Path:
    """Where programs are kept if nothing is said."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    base = pathlib.Path(cache) if os.path.isabs(cache) else pathlib.Path("~/.cache").expanduser()
    return base / "gvm_jax" / "programs"


def keep_programs() -> None:
    """Has JAX keep programs in `default_folder`, unless its own settings say where, or that none be kept.

    Call it before anything is compiled, after `distributed.start`: a run of several processes keeps none.
    """
    said = jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache
    if said or jax.distributed.is_initialized():
        return
    try:
        folder = default_folder()
        _make_ready(folder)
    except (OSError, RuntimeError, KeyError) as error:  # no home; a full or read-only disk; a user without a name
        why = f"note: compiled programs are not kept ({type(error).__name__}: {error})"
        print(f"{why}; JAX_COMPILATION_CACHE_DIR=FOLDER names another place", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _make_ready(folder: pathlib.Path) -> None:
    """Makes the folder, and removes what a write that was cut short has left; raises where JAX could not write there.

    JAX writes a program, then the time of its use, both behind the lock. A program without a time is not whole, and
    until jax 0.12 it is in the way of all later ones.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # who can write here can have their code run
    with filelock.FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
        epath.Path(folder / _LOCK).stat()  # JAX asks in this way, which fails for a user without a name
        probe = folder / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
        for program in folder.glob("*-cache"):
            if not (time := program.with_name(f"{program.name.removesuffix('-cache')}-atime")).exists():
                program.unlink(missing_ok=True)
                time.unlink(missing_ok=True)
