#!/usr/bin/env bash
# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# What tpu.sh, which sources this, does on the workers of a TPU VM: over ssh, with worker.sh.
# shellcheck disable=SC2154,SC2034  # names are set and read in tpu.sh too

# Sets $status: none, running, stopped (by `tpu.sh stop`), or what training exited with, over all workers.
ask_workers() {
  local line word other seen=' '
  cloud "${ssh[@]}" --worker=all --command="$(remote state)" || return
  while IFS= read -r line; do
    [[ $line == *'stepalign-state '* ]] || continue
    read -r word other <<<"${line#*stepalign-state }"
    if [[ -n $other && $other != "$job" && $command == train ]]; then
      [[ $word != running ]] || give_up 2 "error: $name trains with other arguments: wait for it, or stop it with launch/tpu.sh stop"
      word=none
    fi
    seen+="$word "
  done <<<"$answer"
  for status in running none stopped 75; do [[ $seen == *" $status "* ]] && return; done
  for status in $seen; do [[ $status == 0 ]] || return 0; done
  [[ -n ${status-} ]]
}

# Quoted for the shell on the VM.
remote() {
  local words
  words=$(printf ' %q' "$@")
  echo "if [ -f stepalign-worker.sh ]; then bash stepalign-worker.sh$words; else echo stepalign-state none; fi"
}

start() {
  ((dry_run)) || pack || give_up 1 "error: the package could not be packed"
  cloud "${scp[@]}" "$scratch/stepalign-worker.sh" "$scratch/stepalign-package.tgz" "$name:." --worker=all || return
  say "installing on all workers; the first time takes minutes"
  cloud "${ssh[@]}" --worker=all --command="$(remote setup)" || return
  recover
  if [[ -d $results ]]; then
    ((dry_run)) || tar -cf "$scratch/stepalign-runs.tar" -C "$results" . || give_up 1 "error: $results cannot be read"
    cloud "${scp[@]}" "$scratch/stepalign-runs.tar" "$name:." --worker=all || return
    cloud "${ssh[@]}" --worker=all --command="$(remote restore)" || return
  fi
  say "on each worker: python -m stepalign_jax.train$(printf ' %q' "${training[@]}")"
  cloud "${ssh[@]}" --worker=all --command="$(remote start "$job" "${training[@]}")" && followed=1
}

# The package as it is here, committed or not. The same files give the same bytes.
pack() {
  cp "$here/worker.sh" "$scratch/stepalign-worker.sh" &&
    tar --sort=name --mtime=@0 --owner=0 --group=0 --exclude=__pycache__ -cf "$scratch/package.tar" \
      -C "$here/.." pyproject.toml README.md LICENSE constraints.txt configs stepalign_jax &&
    { ((!${#sent[@]})) || tar --sort=name --mtime=@0 --owner=0 --group=0 -rf "$scratch/package.tar" "${sent[@]}"; } &&
    gzip -n <"$scratch/package.tar" >"$scratch/stepalign-package.tgz"
}

# Shows what training wrote since the last time, until it ends or SECS are over.
follow() { stream "${ssh[@]}" --worker=0 --command="$(remote follow "$1")"; }

# The old results stay until the new ones are whole.
fetch() {
  recover
  cloud "${ssh[@]}" --worker=0 --command="$(remote snapshot)" &&
    cloud "${scp[@]}" "$name:stepalign-runs.tar" "$scratch/fetched.tar" --worker=0 || return
  ((dry_run)) && return
  rm -rf "$results.new"
  mkdir -p "$results.new"
  if ! tar -xf "$scratch/fetched.tar" -C "$results.new" 2>/dev/null; then
    complaint="what came is no archive"
    return 1
  fi
  [[ ! -d $results ]] || mv "$results" "$results.old"
  mv "$results.new" "$results" && rm -rf "$results.old"
}

# An earlier launcher may have been killed between the two moves.
recover() { [[ -d $results || ! -d $results.old ]] || mv "$results.old" "$results"; }
