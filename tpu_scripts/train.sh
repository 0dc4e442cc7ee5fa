#!/usr/bin/env bash
# Train. Without arguments: the quickstart. Otherwise every argument goes to gvm_jax.train:
#   tpu_scripts/train.sh --config=configs/X.py --workdir=DIR --config.a.b=c
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
# shellcheck disable=SC2119 # no extras beyond the accelerator's
activate_environment
if [ $# -eq 0 ]; then
  set -- --config="${root:?}/configs/quickstart.py"
fi
# Huge pages for the host's memory, where the kernel gives them on request: without them, page faults take a tenth of an
# update on a CPU.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec python -m gvm_jax.train "$@"
