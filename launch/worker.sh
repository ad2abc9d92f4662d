#!/usr/bin/env bash
# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# What is done where training runs. tpu.sh copies this to each worker of a TPU VM and calls it
# over ssh; sky.yaml calls two of its parts. It is not called by hand.
#
#   setup                unpacks the package and installs it, once for each package
#   install_package EXTRA   installs the tree as it is, with the package's extra tpu or cuda
#   restore              unpacks the results of an earlier VM, if there are none here
#   start JOB ARGUMENT…  python -m stepalign_jax.train ARGUMENT…, detached, once
#   state                one line: "stepalign-state STATUS JOB", the status being none, running,
#                        stopped (by `stop`) or what training exited with
#   follow SECS          what training wrote since the last time; ends with it, or after SECS
#   stop                 SIGTERM: training saves a checkpoint and exits with 75
#   snapshot             packs runs/ so that training can go on from it
#   keep DIR SECS COMMAND…  runs the command, with runs/ restored from DIR, packed there every
#                        SECS and at the end; exits with what the command exited with
set -euo pipefail

self=$(realpath "${BASH_SOURCE[0]}")
home=$HOME
tree=${STEPALIGN_TREE:-$home/stepalign}
job=$tree/.job  # id, pid, log, exit, shown

setup() {
  mkdir -p "$tree"
  tar -xzf "$home/stepalign-package.tgz" -C "$tree"
  local stamp
  stamp=$(cksum <"$home/stepalign-package.tgz")
  [[ -f $tree/.installed && $(<"$tree/.installed") == "$stamp" ]] && return
  install_package tpu
  printf '%s\n' "$stamp" >"$tree/.installed"
}

install_package() {
  cd "$tree"
  [[ -x .venv/bin/python ]] || make_venv
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$1]"
}

# The images of TPU VMs come with Python 3.10, and the package needs 3.11.
make_venv() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    rm -rf .venv
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$python" -m venv .venv && return
    fi
  done
  rm -rf .venv
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python 3.12 .venv
}

restore() {
  [[ -d $tree/runs ]] && return
  rm -rf "$tree/runs.part"
  mkdir -p "$tree/runs.part"
  tar -xf "$home/stepalign-runs.tar" -C "$tree/runs.part"
  if [[ -f $tree/runs.part/log.txt ]]; then
    mkdir -p "$job"
    mv "$tree/runs.part/log.txt" "$job/log"
    stat -c %s "$job/log" >"$job/shown"
  fi
  mv "$tree/runs.part" "$tree/runs"
}

status() {
  local pid
  [[ -f $job/id ]] || { echo none; return; }
  pid=$(cat "$job/pid" 2>/dev/null) || pid=
  if [[ -n $pid && $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *'worker.sh watch'* ]]; then
    echo running
  elif [[ -f $job/stopped && $(cat "$job/exit" 2>/dev/null) != 0 ]]; then
    echo stopped
  elif [[ -s $job/exit ]]; then
    cat "$job/exit"
  else
    echo 75  # the machine went down under it: what is on the disk goes on
  fi
}

start() {
  local id=$1
  shift
  exec 9>"$tree/.starting"
  flock 9  # two launchers at once start one training
  [[ $(status) == running ]] && return
  mkdir -p "$job" "$tree/runs"
  rm -f "$job/exit" "$job/pid" "$job/stopped"
  printf '%s\n' "$id" >"$job/id"
  cd "$tree"
  setsid nohup bash "$self" watch "$@" </dev/null >>"$job/log" 2>&1 9>&- &
  printf '%s\n' $! >"$job/pid"
  local try
  for ((try = 0; try < 100; try++)); do  # until it can be told from one that died
    [[ $(status) != 75 ]] && break
    sleep 0.05
  done
}

# Outlives the connection that started it, and keeps what training exited with.
watch() {
  cd "$tree"
  attend .venv/bin/python -m stepalign_jax.train "$@"
  printf '%s\n' "$code" >"$job/exit.part"
  mv "$job/exit.part" "$job/exit"
}

# Runs a command, hands SIGTERM on to it, and sets $code to its exit status.
attend() {
  local pid
  "$@" &
  pid=$!
  trap 'kill -TERM "$pid" 2>/dev/null || true' TERM
  while :; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break  # else a signal ended the wait, not the command
  done
}

follow() {
  local until=$((SECONDS + $1)) shown size now
  shown=$(cat "$job/shown" 2>/dev/null) || shown=0
  while :; do
    now=$(status)
    size=$(stat -c %s "$job/log" 2>/dev/null) || size=0
    if ((size > shown)); then
      tail -c "+$((shown + 1))" "$job/log" | head -c $((size - shown))
      shown=$size
      printf '%s\n' "$shown" >"$job/shown"
    fi
    [[ $now == running ]] && ((SECONDS < until)) || return 0
    sleep 1
  done
}

stop() {
  [[ $(status) == running ]] || return 0
  : >"$job/stopped"
  kill -TERM "$(<"$job/pid")"
}

# A checkpoint's manifest is written last and goes first. So one that is there before and after
# its files were linked is whole; the others lose theirs, and count as never finished. What is
# copied after the checkpoints is newer than they are, as after a kill.
snapshot() {
  local from=$tree/runs to=$tree/.snapshot before manifest
  [[ -d $from ]] || { echo "there are no results yet" >&2; exit 1; }
  rm -rf "$to"
  mkdir -p "$to"
  cd "$from"
  before=$(find . -path '*/checkpoints/*/manifest.json')
  find . -path '*/checkpoints/*' -type f -print0 | link_all "$to"
  find "$to" -name manifest.json -path '*/checkpoints/*' -delete
  while IFS= read -r manifest; do
    ln "$manifest" "$to/$manifest" 2>/dev/null || true
  done <<<"$before"
  find . -type f ! -path '*/checkpoints/*' ! -name lock.json -print0 | link_all "$to"
  cp "$job/log" "$to/log.txt" 2>/dev/null || true
  pack "$to" "$home/stepalign-runs.tar"
}

keep() {
  local every=$2 code packing
  home=$1
  shift 2
  [[ ! -f $home/stepalign-runs.tar ]] || restore
  if [[ ${SKYPILOT_NODE_RANK:-0} != 0 ]]; then
    attend "$@"
    exit "$code"
  fi
  while sleep "$every"; do (snapshot) || true; done </dev/null >/dev/null 2>&1 &
  packing=$!
  attend "$@"
  kill "$packing"
  wait "$packing" || true
  (snapshot) || echo "the results could not be packed into $home" >&2
  exit "$code"
}

link_all() {
  xargs -0 -r cp --link --preserve --parents --target-directory="$1" 2>/dev/null || true
}

# tar says 1 where a file grew while it was read, which a log may.
pack() {
  local code=0
  tar -cf "$2.part" -C "$1" . || code=$?
  ((code <= 1)) || return "$code"
  mv "$2.part" "$2"
}

case ${1-} in
  setup | install_package | restore | start | follow | stop | snapshot | watch | keep) "$@" ;;
  state) printf 'stepalign-state %s %s\n' "$(status)" "$(cat "$job/id" 2>/dev/null)" ;;
  *) echo "error: worker.sh is called by tpu.sh, which has --help" >&2; exit 2 ;;
esac
