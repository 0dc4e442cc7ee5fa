"""JAX's persistent compilation cache: a run that resumes, or another of the same shapes, compiles nothing again.

The folder is `gvm_jax/programs` in $XDG_CACHE_HOME, by default ~/.cache. Beyond `MOST_BYTES` the least recently used
programs are deleted. JAX's own variables override this: JAX_COMPILATION_CACHE_DIR=FOLDER names another folder, and
JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.

A cached program is the code that was compiled before, so results keep their bits. A run of several processes has no
cache by default: only process 0 would write, and without a shared folder the others would compile while it waits.
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
    """The folder of programs, unless JAX's variables name one."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    base = pathlib.Path(cache) if os.path.isabs(cache) else pathlib.Path("~/.cache").expanduser()
    return base / "gvm_jax" / "programs"


def keep_programs() -> None:
    """Turns JAX's cache on in `default_folder`, unless JAX's settings name a folder or turn it off.

    Call it before anything is compiled, and after `distributed.start`.
    """
    decided = jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache
    if decided or jax.distributed.is_initialized():
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
    """Makes the folder and removes programs whose write was cut short; raises OSError where JAX could not write.

    JAX writes a program, then the time of its use, both behind the lock. Until jax 0.12 a program without a time makes
    all later writes fail.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # anyone who can write here can have their code run
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
