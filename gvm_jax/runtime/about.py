"""What a run was made with: `about.json` of its workdir."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
from etils import epath

from gvm_jax.runtime.files import write_atomically

FILE = "about.json"


def describe() -> dict[str, Any]:
    """Date, versions, commit and devices, as JSON holds them; fields that are not known are left out."""
    devices = jax.devices()
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "gvm_jax": _version(),
        "commit": _commit(),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": jax.process_count(),
    }
    return {name: value for name, value in about.items() if value is not None}


def record_about(workdir: epath.Path) -> None:
    """Writes `about.json`; of a run that is resumed it is of the last start, with the first one's date as "started"."""
    path, about = workdir / FILE, describe()
    before = json.loads(path.read_text()) if path.exists() else about
    about["started"] = before.get("started", about["date"])
    write_atomically(path, json.dumps(about, indent=2) + "\n")


def memory_metrics() -> dict[str, int]:
    """`device/peak_memory_bytes`: the most memory in use so far on any local device; nothing where none reports it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"device/peak_memory_bytes": max(peaks)} if peaks else {}


def _version() -> str | None:
    try:
        return importlib.metadata.version("gvm_jax")
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package is in, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    package = pathlib.Path(__file__).parent.parent
    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return None  # installed into an environment that lies within another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
