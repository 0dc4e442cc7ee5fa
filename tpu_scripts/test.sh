#!/usr/bin/env bash
# Lint and test. Arguments go to pytest: tpu_scripts/test.sh tests/rollout -k greedy
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
activate_environment test
cd "${root:?}"
ruff check .
ruff format --check .
exec python -m pytest "$@"
