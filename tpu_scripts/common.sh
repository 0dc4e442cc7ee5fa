#!/usr/bin/env bash
# Sourced by the scripts beside it: finds a usable Python and makes the virtual environment.

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

usable() { # PYTHON: a name on PATH may be a shim that does not run, or an interpreter without venv
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python 3.11 or newer with venv" >&2; return 2; }
    echo "$PYTHON"
    return
  fi
  local name
  for name in python3.13 python3.12 python3.11 python3 python "$HOME/.local/bin/python3.12"; do
    if usable "$name"; then echo "$name"; return; fi
  done
  echo "No Python 3.11 or newer with venv found on PATH; install one or set PYTHON=/path/to/python3.11." \
    "Without root: pip install --user uv && ~/.local/bin/uv python install 3.12" >&2
  return 1
}

# accelerator_extra: the extra of setup.py with JAX for this machine's accelerator, or nothing.
accelerator_extra() {
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo cuda
  elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
    echo tpu
  fi
}

# activate_environment [EXTRA]: make the virtual environment once, add missing extras, and put it on PATH.
activate_environment() {
  local python version environment stamp have extras wanted
  python=$(find_python) || return
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  environment=${VENV:-$root/.venv-$version}
  stamp=$environment/.installed # "version checksum extra ..."
  have=$(cat "$stamp" 2>/dev/null || true)
  extras=$({ accelerator_extra; printf '%s\n' "$@"; echo "$have" | cut -s -d' ' -f3- | tr ' ' '\n'; } |
    sort -u | { grep . || true; } | paste -s -d ' ' -)
  wanted="$version $(cksum <"$root/setup.py" | cut -d' ' -f1)${extras:+ $extras}"
  if [ "$have" != "$wanted" ]; then
    local package="$root${extras:+[${extras// /,}]}"
    echo "Installing gvm_jax${extras:+ with [${extras// /,}]} for Python $version into $environment (about a minute)" >&2
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
      -e "$package" 2> >(grep -v '^WARNING: Location' >&2)
    echo "$wanted" >"$stamp"
  fi
  export PATH="$environment/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
}
