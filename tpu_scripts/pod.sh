#!/usr/bin/env bash
# Train on a Cloud TPU pod, from your own machine; tpu_scripts/README.md goes through it line by line.
#
#   pod.sh create POD            ask for the pod, and wait until it is there
#   pod.sh setup  POD            copy the checkout to all workers and install it there
#   pod.sh run    POD -- FLAGS   train.sh FLAGS on all workers; shows worker 0, and starts again after a preemption
#   pod.sh logs   POD            the last lines of every worker's log
#   pod.sh status POD            the state of the pod and of the run on every worker
#   pod.sh stop   POD            let the run save and end; the pod stays
#   pod.sh delete POD            give the pod back
#
# POD is --name=NAME --zone=ZONE --type=TYPE [--spot] [--project=PROJECT], the same for all of them; TYPE is an
# accelerator type: v4-16, v5litepod-16, v5p-64, v6e-16. --dry-run prints every command and runs none.
# POLL_SECONDS=30 is the time between two looks at the pod's state.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
poll=${POLL_SECONDS:-30}
max_restarts=3 # of a run on a pod that was not preempted

fail() {
  echo "pod.sh: $*" >&2
  exit 2
}

say() { echo "pod.sh: $*" >&2; }

usage() { sed -n '2,15s/^#\( \|$\)//p' "${BASH_SOURCE[0]}"; }

# --- the command line ---

command=${1:-}
case $command in
create | setup | run | logs | status | stop | delete) shift ;;
-h | --help)
  usage
  exit
  ;;
*)
  echo "usage: pod.sh COMMAND --name=NAME --zone=ZONE --type=TYPE [...]; pod.sh --help explains" >&2
  fail "first argument ${command:-is missing}: must be create, setup, run, logs, status, stop or delete"
  ;;
esac

name='' zone='' type='' project='' spot='' dry_run='' workdir=''
while [ $# -gt 0 ]; do
  case $1 in
  --name=*) name=${1#*=} ;;
  --zone=*) zone=${1#*=} ;;
  --type=*) type=${1#*=} ;;
  --project=*) project=${1#*=} ;;
  --spot) spot=yes ;;
  --dry-run) dry_run=yes ;;
  -h | --help)
    usage
    exit
    ;;
  --)
    shift
    break
    ;;
  *) fail "unknown argument $1; options are written --name=NAME, and flags of train.sh come after --" ;;
  esac
  shift
done
[ -n "$name" ] || fail "--name=NAME is missing: any name for the pod, such as mine"
[ -n "$zone" ] || fail "--zone=ZONE is missing: one that has such TPUs, such as us-east5-b"
[ -n "$type" ] || fail "--type=TYPE is missing: an accelerator type, such as v6e-16"
case $type in
v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
v5p-*) runtime=v2-alpha-tpuv5 ;;
v6e-*) runtime=v2-alpha-tpuv6e ;;
v5e-*) fail "--type=$type: Cloud TPU calls it v5litepod-${type#v5e-}" ;;
*) fail "--type=$type: must be v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N (newer ones are not in this API)" ;;
esac
if [ "$command" = run ]; then
  for flag in "$@"; do
    case $flag in --workdir=*) workdir=${flag#*=} ;; esac
  done
  [ -n "$workdir" ] || fail "run: --workdir=gs://BUCKET/FOLDER is missing after --; checkpoints go there"
  case $workdir in
  gs://*) ;;
  *) say "warning: --workdir=$workdir is lost with the workers unless all of them mount it; use gs://BUCKET/FOLDER" ;;
  esac
elif [ $# -gt 0 ]; then
  fail "$command takes no flags of train.sh: $*"
fi
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "gcloud is not on PATH: https://cloud.google.com/sdk/docs/install"

archive=$root/runs/pod-$name.tar.gz

# --- gcloud ---

quoted() { # the arguments as a shell reads them
  local argument line='' escape="'\\''"
  for argument in "$@"; do
    case $argument in
    *[!A-Za-z0-9_./:=,@%+-]* | '') argument="'${argument//\'/$escape}'" ;;
    esac
    line="$line $argument"
  done
  echo "${line# }"
}

call() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

tpus() { # gcloud compute tpus GROUP VERB ARGUMENT ... in this zone
  call gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"}
}

on() { # on WORKER ARGUMENT ...: worker.sh ARGUMENT ... on a worker, or on all
  local worker=$1
  shift
  # A worker that went away must not leave the connection open for ever.
  tpus tpu-vm ssh "$name" --worker="$worker" --ssh-flag=-oServerAliveInterval=30 \
    --command="gvm_jax/tpu_scripts/worker.sh $(quoted "$@")"
}

pod_state() { # ACTIVE, SUSPENDED, ...; NONE if there is no such pod; UNKNOWN if gcloud does not say
  local answer
  if answer=$(tpus queued-resources describe "$name" --format='value(state.state)' 2>&1); then
    echo "$answer"
  else
    case $answer in
    *NOT_FOUND* | *"not found"*) echo NONE ;;
    *)
      say "$answer"
      echo UNKNOWN
      ;;
    esac
  fi
}

known_state() { # pod_state, or an error: at a first call gcloud may not be set up
  local state
  state=$(pod_state)
  [ "$state" != UNKNOWN ] || fail "gcloud does not tell the state of $name; it says why above"
  echo "$state"
}

# --- the sub-commands; they return 1 where `run` may try again ---

create() { # called again, it goes on waiting
  local state=NONE
  [ -n "$dry_run" ] || state=$(known_state) || return 2
  if [ "$state" != NONE ]; then
    wait_until_active
    return
  fi
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    ${spot:+--spot} || return 1
  wait_until_active
}

wait_until_active() {
  local now before=''
  while :; do
    if [ -n "$dry_run" ]; then
      echo "# until it prints ACTIVE:"
      tpus queued-resources describe "$name" --format='value(state.state)'
      return
    fi
    now=$(pod_state)
    [ "$now" = "$before" ] || say "$name is $now"
    before=$now
    case $now in
    ACTIVE) return ;;
    FAILED | SUSPENDING | SUSPENDED | NONE)
      tpus queued-resources describe "$name" >&2 || true
      say "$name is $now and will not start; see above, then: pod.sh delete"
      return 1
      ;;
    esac
    sleep "$poll"
  done
}

pack() { # the last commit, for the workers now and after a preemption, whatever happens to the checkout meanwhile
  if [ -z "$dry_run" ] && ! git -C "$root" diff --quiet HEAD --; then
    fail "setup: $root has changes that are not committed, or is no git checkout; the workers get the last commit"
  fi
  call mkdir -p "$root/runs"
  call git -C "$root" archive --format=tar.gz --output="$archive" HEAD
}

install() {
  tpus tpu-vm scp "$archive" "$name:gvm_jax.tar.gz" --worker=all || return 1
  # The copy of the last setup goes; the environment and runs/ stay.
  tpus tpu-vm ssh "$name" --worker=all --command="mkdir -p gvm_jax && cd gvm_jax && \
rm -rf gvm_jax configs tpu_scripts tests && tar -xzf ../gvm_jax.tar.gz && tpu_scripts/worker.sh setup"
}

remove() {
  tpus queued-resources delete "$name" --force --quiet
}

setup() { pack && install; }

recreate() {
  [ -e "$archive" ] || pack
  remove || return 1
  until create; do
    [ "$(pod_state)" = NONE ] || return 1
    sleep "$poll" # gcloud said why
  done
  install
}

watch_run() { # shows worker 0 until its run ends, or until the pod is not ACTIVE any more
  local seconds=0
  set -m # a process group of its own, which can be ended as a whole
  on 0 follow </dev/null &
  set +m
  follower=$!
  while kill -0 "$follower" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % poll)) -eq 0 ]; then
      case $(pod_state) in
      ACTIVE | UNKNOWN) ;;
      *)
        kill -- "-$follower" 2>/dev/null || true
        break
        ;;
      esac
    fi
  done
  wait "$follower" 2>/dev/null || true
}

run_outcome() { # the state of the run on every worker; nothing unless all of them answer
  local answer
  if answer=$(on all status); then echo "$answer" | sort | paste -s -d ';' -; fi
}

run() {
  if [ -n "$dry_run" ]; then
    on all start "$@"
    on 0 follow
    on all status
    echo "# after a preemption:"
    remove
    create
    install
    echo "# and the first three again"
    return
  fi
  local restarts=0 state outcome follower=
  trap 'kill -- "-${follower:-0}" 2>/dev/null || true; say "the run goes on; this command shows it again, pod.sh stop ends it"; exit 130' INT
  state=$(known_state) || return 2
  while :; do
    state=$(pod_state)
    case $state in
    ACTIVE) ;;
    UNKNOWN)
      sleep "$poll"
      continue
      ;;
    NONE) fail "run: there is no pod $name in $zone; pod.sh create, then pod.sh setup" ;;
    CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES)
      fail "run: $name is $state; pod.sh create waits for it, then pod.sh setup"
      ;;
    *)
      say "$name is $state: giving it back and asking for it again"
      recreate || sleep "$poll"
      restarts=0
      continue
      ;;
    esac
    if ! on all start "$@"; then
      [ "$(pod_state)" = ACTIVE ] || continue
      fail "run: could not start on every worker; see above (has pod.sh setup succeeded?)"
    fi
    watch_run
    while outcome=$(run_outcome) && [[ $outcome = *running* ]]; do
      if [[ $(on 0 status) = *running* ]]; then watch_run; else sleep 1; fi
    done
    [ "$(pod_state)" = ACTIVE ] || continue
    say "${outcome:-no answer from the workers}"
    if [ -z "$outcome" ]; then
      sleep "$poll" # a pod that is about to be preempted
    elif [[ $outcome = *stopped* ]]; then
      say "stopped on request; the same command goes on from there"
      return 143
    elif [[ $outcome =~ code\ ([12])(\;|$) ]]; then
      say "a worker failed, and would again; pod.sh logs shows why"
      return "${BASH_REMATCH[1]}"
    elif ! [[ $outcome =~ code\ [1-9] ]]; then
      return # all ended with 0
    elif [ "$restarts" -ge "$max_restarts" ]; then
      say "given up after $max_restarts restarts; pod.sh logs shows why"
      return 75
    else
      restarts=$((restarts + 1))
      say "a process was lost: starting again from the last checkpoint ($restarts of $max_restarts)"
    fi
  done
}

status() {
  if [ -n "$dry_run" ]; then
    tpus queued-resources describe "$name" --format='value(state.state)'
    on all status
    return
  fi
  local now
  now=$(known_state) || return 2
  echo "$name: $now"
  [ "$now" != ACTIVE ] || on all status
}

case $command in
create) create ;;
setup) setup ;;
run) run "$@" ;;
logs) on all log ;;
status) status ;;
stop) on all stop ;;
delete) remove ;;
esac
