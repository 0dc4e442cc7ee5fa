#!/usr/bin/env bash
# Lint and test. Arguments go to pytest: tpu_scripts/test.sh tests/rollout -k greedy
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
activate_environment test
cd "${root:?}"
ruff check .
ruff format --check .
# By whole files, so that a worker compiles a file's programs once, and in the order of tests/conftest.py. A worker that
# dies is not replaced: the run ends, and its last lines name the test.
exec python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder \
  --max-worker-restart=0 "$@"
