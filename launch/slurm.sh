#!/usr/bin/env bash
# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# Trains on a Slurm cluster's GPU nodes. docs/launch.md says how; --help lists all.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'END'
usage: launch/slurm.sh COMMAND --name N [options] [-- TRAINING ARGUMENTS]

Run it in the repository, on a file system that the nodes share, with the package installed in
.venv (pip install '.[cuda]').

  train     submits the job, unless one of that name is there already
  status    says whether it waits or runs
  logs      shows what it writes, until interrupted
  stop      has training save a checkpoint and end; it does not queue again
  delete    cancels it at once

options:
  --name N             of the job (required)
  --partition P        (required for train)
  --account A          what pays, where the cluster asks for it
  --nodes N            (default 1)
  --gpus-per-node N    (default 1)
  --time T             of one stretch; longer training queues again (default 24:00:00)
  --max-restarts N     (default 50)
  --dry-run            prints every call that it would make, and makes none

exit status: 0 done; 2 a mistake; 75 Slurm does not answer, the same command goes on.

example:
  launch/slurm.sh train --name mine --partition gpu --gpus-per-node 4 -- --config stepalign
END
}

say() { printf '%s\n' "$*" >&2; }
refuse() { say "error: $*"; exit 2; }

# Runs a command of Slurm; with --dry-run prints it.
slurm() {
  if ((dry_run)); then printf '%s\n' "$1$(printf ' %q' "${@:2}")"; return; fi
  "$@"
}

read_options() {
  command=${1-}
  case $command in
    train | status | logs | stop | delete) shift ;;
    --help | -h) usage; exit ;;
    *) refuse "the first argument is what to do, such as train; see launch/slurm.sh --help" ;;
  esac
  name='' partition='' account='' nodes=1 gpus=1 time=24:00:00 max_restarts=50 dry_run=0
  training=()
  while (($#)); do
    case $1 in
      --help | -h) usage; exit ;;
      --) shift; training=("$@"); break ;;
      --dry-run) dry_run=1; shift ;;
      --*=*) option "${1%%=*}" "${1#*=}"; shift ;;
      --*) (($# > 1)) || refuse "$1 needs a value; see launch/slurm.sh --help"
        option "$1" "$2"; shift 2 ;;
      *) refuse "'$1' is no option; what follows -- goes to training (launch/slurm.sh --help)" ;;
    esac
  done
}

option() {
  case $1 in
    --name) name=$2 ;;
    --partition) partition=$2 ;;
    --account) account=$2 ;;
    --nodes) nodes=$2 ;;
    --gpus-per-node) gpus=$2 ;;
    --time) time=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    *) refuse "$1 is no option; see launch/slurm.sh --help" ;;
  esac
}

check_options() {
  local number
  [[ -n $name ]] || refuse "--name is not given: the job is found again by it"
  [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] || refuse "--name $name: give letters, digits and . _ -"
  for number in "$nodes" "$gpus" "$max_restarts"; do
    [[ $number =~ ^[0-9]+$ ]] || refuse "'$number' is no whole number; see launch/slurm.sh --help"
  done
  [[ $command != train || -n $partition ]] || refuse "--partition is not given: sinfo lists those of this cluster"
  [[ $command != train ]] || ((${#training[@]})) ||
    refuse "training has no arguments: give them after --, such as -- --config stepalign"
  ((dry_run)) || command -v sbatch >/dev/null || refuse "sbatch is not there: run this where jobs are submitted"
}

# Sets $jobs: "ID STATE" of each job of that name, or nothing.
find_jobs() {
  local question=(squeue --me --noheader --name="$name" --format='%i %T')
  if ((dry_run)); then
    slurm "${question[@]}"
    [[ $command == train ]] && jobs='' || jobs='JOB RUNNING'
  elif ! jobs=$("${question[@]}"); then
    say "Slurm does not answer; the same command goes on"
    exit 75
  fi
}

do_train() {
  find_jobs
  if [[ -n $jobs ]]; then
    say "already there: $jobs"
  else
    mkdir -p runs
    local options=(--job-name="$name" --partition="$partition" --nodes="$nodes"
      --gpus-per-node="$gpus" --time="$time" --output="runs/slurm-$name.txt"
      --export="ALL,STEPALIGN_MAX_RESTARTS=$max_restarts")
    [[ -z $account ]] || options+=(--account="$account")
    slurm sbatch "${options[@]}" "$here/slurm.sbatch" "${training[@]}" || {
      local code=$?
      say "sbatch failed, and may have submitted the job all the same: launch/slurm.sh status --name $name says so"
      farewell
      exit "$code"
    }
  fi
  farewell
}

farewell() {
  ((dry_run)) && return
  say "it writes to runs/slurm-$name.txt. Cancel it:"
  say "  scancel --me --name=$name"
}

do_status() { find_jobs; ((dry_run)) || say "${jobs:-no job is named $name}"; }

do_logs() { slurm tail -n 100 -F "runs/slurm-$name.txt"; }

# Training gets SIGTERM and exits with 75; the job must not queue again for it.
do_stop() {
  find_jobs
  local id
  for id in ${jobs:+$(awk '{print $1}' <<<"$jobs")}; do
    slurm scontrol update JobId="$id" Requeue=0
    slurm scancel --batch --signal=TERM "$id"
  done
}

do_delete() { slurm scancel --me --name="$name"; }

read_options "$@"
check_options
"do_$command"
