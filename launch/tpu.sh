#!/usr/bin/env bash
# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains on a Cloud TPU VM, from nothing and back. docs/launch.md says how; --help lists all.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=cloud.sh
. "$here/cloud.sh"
# shellcheck source-path=SCRIPTDIR source=workers.sh
. "$here/workers.sh"

usage() {
  cat <<'END'
usage: launch/tpu.sh COMMAND --project P --zone Z --name N [options] [-- TRAINING ARGUMENTS]

  train     makes the TPU VM or takes the one of that name, installs, trains on all workers,
            makes a preempted one again, fetches the results, deletes what it made.
            The same command goes on wherever an earlier one stopped
  create    makes the TPU VM, and waits until it is ready
  status    says what there is, and whether it trains
  logs      shows what training writes, until it ends
  fetch     copies the results here
  stop      has training save a checkpoint and stop; the VM stays
  delete    deletes the VM and its request, whoever made them

options:
  --project P        Google's project (required)
  --zone Z           a zone that has the type (required)
  --name N           of the VM and its request (required)
  --type T           such as v5litepod-8, v6e-8, v5p-8; needed where no VM is there yet
  --runtime R        the VM's software; it follows from the type for v5litepod, v5p, v6e
  --spot             a preemptible VM, at a fraction of the price
  --network N        a network other than the default
  --results DIR      where results go (default runs/on-NAME)
  --send PATH        copies this file or directory beside the package too, such as data/openmath
  --keep             keeps the VM after training, with the command that deletes it printed
  --valid-for T      an unanswered request ends by itself after this time (default 24h)
  --max-restarts N   of training and of lost VMs, together (default 50)
  --snapshot-secs S  how often results are fetched while it trains (default 600)
  --poll-secs S      between two questions to the cloud (default 30)
  --dry-run          prints every call that a smooth run makes, and makes none

exit status: 0 done; 2 a mistake; 75 stopped, the same command goes on; else what training
exited with. The last lines say what still exists, with the command that deletes it.

example:
  launch/tpu.sh train --project my-project --zone us-west4-a --name mine --type v5litepod-8 \
    --spot --send data/openmath -- --config stepalign
END
}

refuse() { say "error: $*"; exit 2; }

# give_up STATUS WORDS: ends; the trap says what is left.
give_up() { local code=$1; shift; say "$*"; exit "$code"; }

read_options() {
  command=${1-}
  case $command in
    train | create | status | logs | fetch | stop | delete) shift ;;
    --help | -h) usage; exit ;;
    *) refuse "the first argument is what to do, such as train; see launch/tpu.sh --help" ;;
  esac
  project='' zone='' name='' type='' runtime='' network='' results='' sent=()
  spot=0 keep=0 dry_run=0 valid_for=24h max_restarts=50 snapshot_secs=600 poll_secs=30
  training=()
  while (($#)); do
    case $1 in
      --help | -h) usage; exit ;;
      --) shift; training=("$@"); break ;;
      --spot) spot=1; shift ;;
      --keep) keep=1; shift ;;
      --dry-run) dry_run=1; shift ;;
      --*=*) option "${1%%=*}" "${1#*=}"; shift ;;
      --*) (($# > 1)) || refuse "$1 needs a value; see launch/tpu.sh --help"
        option "$1" "$2"; shift 2 ;;
      *) refuse "'$1' is no option; what follows -- goes to training (launch/tpu.sh --help)" ;;
    esac
  done
}

option() {
  case $1 in
    --project) project=$2 ;;
    --zone) zone=$2 ;;
    --name) name=$2 ;;
    --type) type=$2 ;;
    --runtime) runtime=$2 ;;
    --network) network=$2 ;;
    --results) results=$2 ;;
    --send) sent+=("$2") ;;
    --valid-for) valid_for=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --snapshot-secs) snapshot_secs=$2 ;;
    --poll-secs) poll_secs=$2 ;;
    *) refuse "$1 is no option; see launch/tpu.sh --help" ;;
  esac
}

check_options() {
  local key path number
  for key in project zone name; do
    [[ -n ${!key} ]] || refuse "--$key is not given: nothing is asked of the cloud without it"
  done
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    refuse "--name $name is no name of a TPU VM: up to 40 lower-case letters, digits and hyphens"
  for number in "$max_restarts" "$snapshot_secs" "$poll_secs"; do
    [[ $number =~ ^[0-9]+$ ]] || refuse "'$number' is no whole number; see launch/tpu.sh --help"
  done
  for path in ${sent[@]+"${sent[@]}"}; do
    [[ -e $path ]] || refuse "--send $path is not there"
    [[ $path != /* && $path != *..* ]] ||
      refuse "--send $path: give a path below the working directory, as training will name it"
  done
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
  [[ -z $type || -n $runtime ]] || refuse "the software of a $type is not known: give --runtime"
  [[ $command != train ]] || check_training
  ((dry_run)) || command -v gcloud >/dev/null ||
    refuse "gcloud is not installed: it comes with Google's Cloud SDK"
}

check_training() {
  local argument
  ((${#training[@]})) || refuse "training has no arguments: give them after --, such as -- --config stepalign"
  for argument in "${training[@]}"; do
    [[ $argument != --runs_dir* ]] ||
      refuse "--runs_dir is where the launcher looks for results: leave it out, and use --results"
  done
}

runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

main() {
  read_options "$@"
  check_options
  where=(--project="$project" --zone="$zone")
  delete_request=(compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)
  delete_vm=(compute tpus tpu-vm delete "$name" "${where[@]}" --quiet)
  ssh=(compute tpus tpu-vm ssh "$name" "${where[@]}" --quiet
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4)
  scp=(compute tpus tpu-vm scp "${where[@]}" --quiet)
  results=${results:-runs/on-$name}
  job=$(printf '%s\n' ${training[@]+"${training[@]}"} | cksum)
  job=${job%% *}
  # What the cloud said last, and what may be there.
  request=unknown vm=unknown vm_type='' ours=0 phase=unknown exists=maybe unclear=0
  answer='' complaint='' child='' pretended=nothing
  refused=0 restarts=0 followed=0 said='' tries=10
  call_secs=$((snapshot_secs + 900))
  case $command in train | create) ;; *) pretended=running ;; esac
  scratch=$(mktemp -d) || refuse "there is no room for temporary files"
  trap 'end $?' EXIT
  trap 'stopped_by INT' INT
  trap 'stopped_by TERM' TERM
  trap 'stopped_by HUP' HUP
  "do_$command"
}

stopped_by() {
  trap '' INT TERM HUP
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
  give_up 75 "stopped by SIG$1; training goes on there if it had begun, and the same command goes on here"
}

end() {
  trap '' INT TERM HUP PIPE
  rm -rf "$scratch"
  ((dry_run)) || farewell
  exit "$1"
}

do_create() {
  warn
  wait_until_ready
}

do_train() {
  warn
  if [[ -f $results/.finished && $(<"$results/.finished") == "$job" ]]; then
    say "this training is finished; its results are in $results"
    look_surely
    if [[ $phase == ready ]]; then fetch_and_finish 0; give_up 75 "its VM cannot be deleted yet"; fi
    finish 0
  fi
  while :; do
    wait_until_ready
    supervise
    pause
  done
}

# Said before anything is made: even a launcher that is killed has said it.
warn() { say "to end what $name costs, at any time:"; ((dry_run)) || delete_commands >&2; }

do_status() {
  look
  say "$name: request $request, VM $vm${vm_type:+ ($vm_type)}"
  [[ $phase != ready ]] || { ask_workers && say "training: $status"; }
}

do_logs() {
  need_ready
  while :; do
    follow "$snapshot_secs" || give_up 75 "the VM does not answer: $(reason)"
    ask_workers && [[ $status != running ]] && give_up 0 "training: $status"
  done
}

do_fetch() {
  need_ready
  fetch || give_up 75 "the results could not be fetched: $(reason)"
}

do_stop() {
  need_ready
  cloud "${ssh[@]}" --worker=all --command="$(remote stop)" || give_up 75 "the VM does not answer: $(reason)"
}

do_delete() {
  look_surely
  [[ $exists == no ]] || delete_all || give_up 75 "$name could not be deleted"
}

need_ready() {
  look_surely
  [[ $phase == ready ]] || give_up 2 "error: $name is not ready (request $request, VM $vm)"
}

# Looks until the answer can be relied on.
look_surely() {
  local try
  for ((try = 0; try < tries; try++)); do
    look
    [[ $phase == unknown ]] || return 0
    pause
  done
  give_up 75 "the cloud gives no answer to rely on (request $request, VM $vm): $(reason)"
}

wait_until_ready() {
  local made=0
  while :; do
    look_surely
    [[ "$request $vm" == "$said" ]] || say "$name: request $request, VM $vm"
    case $phase in
      ready)
        [[ "$request $vm" == "$said" ]] || check_type
        said="$request $vm"
        return ;;
      absent)
        [[ -n $type ]] || give_up 2 "error: there is no $name in $zone: give --type, and it is made"
        ((made++ < 3)) || give_up 1 "error: $name could not be made"
        create && continue ;;
      lost)
        ((ours)) || give_up 2 "error: $name is lost, and was not made here: delete it, and run this again"
        count_restart "$name is lost"
        delete_all || give_up 75 "$name is lost and could not be deleted"
        made=0 ;;
      stopped)
        give_up 2 "error: $name is stopped: start it with gcloud compute tpus tpu-vm start $name ${where[*]}" ;;
    esac
    said="$request $vm"
    pause
  done
}

count_restart() {
  say "$1; restart $((restarts + 1)) of at most $max_restarts"
  ((restarts++ < max_restarts)) || give_up 1 "error: that is more than --max-restarts=$max_restarts"
}

check_type() {
  ((ours)) || say "taking $name as it is: it was not made here, and will not be deleted here"
  [[ -z $type || -z $vm_type || $type == "$vm_type" ]] ||
    give_up 2 "error: $name is a $vm_type, not a $type: give another --name, or leave --type out"
}

# One look at a VM that is ready: starts training, follows it for a while, or ends.
supervise() {
  if ! ask_workers; then not_reached; return; fi
  case $status in
    none) start_or_not ;;
    running) followed=1; watch ;;
    0) fetch_and_finish 0 ;;
    75) count_restart "training stopped after a checkpoint"; start_or_not ;;
    stopped) ((!followed)) || give_up 75 "training was stopped after a checkpoint"
      start_or_not ;;
    *) ((!followed)) || fetch_and_finish "$status"
      ((followed)) || say "training had ended with $status before; it is started again"
      ((followed)) || start_or_not ;;
  esac
}

start_or_not() { if start; then refused=0; else not_reached; fi; }

# Only what succeeds on the VM forgets the failures before: a VM on which nothing can be
# installed answers, and is given up all the same.
not_reached() {
  say "the VM did not do it: $(reason)"
  ((++refused < tries)) || give_up 75 "the VM does not answer, or fails, after $tries tries"
}

watch() {
  if ! follow "$snapshot_secs"; then not_reached; return; fi
  refused=0
  fetch || say "no results were fetched this time: $(reason)"
}

# Nothing is deleted whose results are not here.
fetch_and_finish() {
  if ! { follow 0 && fetch; }; then not_reached; return; fi
  say "training ended with $1; results are in $results"
  [[ $1 != 0 ]] || ((dry_run)) || printf '%s\n' "$job" >"$results/.finished"
  finish "$1"
}

# Deletes what was made here, unless it is to be kept, and ends.
finish() {
  if ((ours && !keep)) && [[ $exists != no ]]; then
    delete_all || give_up 75 "the results are here, but $name could not be deleted"
  fi
  exit "$1"
}

main "$@"
