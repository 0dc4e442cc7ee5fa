#!/usr/bin/env bash
# pod.sh runs this on each worker of a pod, in the worker's copy of the checkout:
#   worker.sh setup            a Python if there is none, and the environment with JAX for TPUs
#   worker.sh start FLAGS      train.sh FLAGS, which goes on when the connection ends
#   worker.sh follow           its log, until it ends
#   worker.sh log              the log's last lines
#   worker.sh status           one line: not started, running, stopped, or ended with code N
#   worker.sh stop             SIGTERM: the run saves and ends
set -euo pipefail
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
state=${root:?}/runs/worker # log, log.previous, flags, pid, code (once it ended), stopped (if on request)
name=worker\ ${HOSTNAME:-$(hostname)}
cd "$root" # relative paths in flags are those of the checkout

running() {
  [ -e "$state/pid" ] && [ ! -e "$state/code" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

setup() {
  if ! find_python >/dev/null 2>&1; then
    echo "$name: no Python 3.11 or newer here; installing 3.12 into ~/.local" >&2
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv python install --quiet 3.12
  fi
  activate_environment tpu
  echo "$name: ready"
}

start() {
  if running; then
    [ "$(cat "$state/flags")" = "$*" ] && { echo "$name: running already"; return; }
    echo "$name: another run goes on here ($(cat "$state/flags")); end it with pod.sh stop" >&2
    return 1
  fi
  mkdir -p "$state"
  rm -f "$state"/{pid,code,stopped}
  [ ! -e "$state/log" ] || mv "$state/log" "$state/log.previous"
  echo "$*" >"$state/flags"
  setsid --fork bash "$root/tpu_scripts/worker.sh" supervise "$@" >"$state/log" 2>&1 </dev/null
  until [ -e "$state/pid" ]; do sleep 0.1; done
  echo "$name: started"
}

supervise() { # the session of a run; stays until it has recorded the exit code
  echo "$BASHPID" >"$state/pid.new" && mv "$state/pid.new" "$state/pid"
  trap : TERM # it is for train.sh
  local code=0
  PYTHONUNBUFFERED=1 "$root/tpu_scripts/train.sh" "$@" || code=$?
  echo "$code" >"$state/code.new" && mv "$state/code.new" "$state/code"
}

follow() {
  tail -n 1000 --pid="$(cat "$state/pid")" -F "$state/log" 2>/dev/null
}

log() {
  echo "== $name"
  tail -n 100 "$state/log"
}

status() {
  if [ ! -e "$state/pid" ]; then
    echo "$name: not started"
  elif running; then
    echo "$name: running"
  elif [ -e "$state/stopped" ]; then
    echo "$name: stopped"
  else # without a code the session itself was killed, or the machine was restarted
    echo "$name: ended with code $(cat "$state/code" 2>/dev/null || echo 137)"
  fi
}

stop() {
  if running; then
    touch "$state/stopped"
    kill -TERM -- "-$(cat "$state/pid")" # the whole session
    while running; do sleep 0.2; done # it saves
  fi
  status
}

case ${1:-} in
setup | start | supervise | follow | log | status | stop) "$@" ;;
*)
  sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
  ;;
esac
