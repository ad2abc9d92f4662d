#!/usr/bin/env bash
# Copyright 2026 The stepalign_jax authors.
# SPDX-License-Identifier: Apache-2.0
#
# Google's cloud for tpu.sh, which sources this: one way to call it, what it says about the TPU
# VM $name, and the promise that nothing that costs is left without a word.
#
# A queued resource (the request) and a node (the VM) have the same name. What is made here has
# the label stepalign=launched; without the label it was there before, and is never deleted but
# by `tpu.sh delete`.
# shellcheck disable=SC2154,SC2034  # names are set and read in tpu.sh too

say() { printf '%s\n' "$*" >&2; }

# cloud ARGUMENT…: `gcloud ARGUMENT…`; its output is in $answer, its error in $complaint.
cloud() {
  local code=0
  announce "$@"
  if ((dry_run)); then pretend "$@"; return; fi
  run_gcloud "$@" >"$scratch/answer" || code=$?
  answer=$(<"$scratch/answer")
  return "$code"
}

# As cloud, with the output on the terminal as it comes.
stream() {
  announce "$@"
  if ((dry_run)); then pretend "$@"; else run_gcloud "$@"; fi
}

# In the background, so that a signal is heeded at once and not when the call ends.
run_gcloud() {
  local code=0
  timeout "$call_secs" gcloud "$@" </dev/null 2>"$scratch/complaint" &
  child=$!
  wait "$child" || code=$?
  child=
  complaint=$(<"$scratch/complaint")
  return "$code"
}

# Calls that make or delete something are shown; --dry-run shows all.
announce() {
  if ((dry_run)); then
    printf 'gcloud%s\n' "$(printf ' %q' "$@")"
  elif [[ $4 == create || $4 == delete ]]; then
    say "+ gcloud$(printf ' %q' "$@")"
  fi
}

# The line of gcloud's words that says what is wrong.
reason() {
  local line
  while IFS= read -r line; do [[ $line == ERROR:* ]] && break; done <<<"$complaint"
  printf '%s' "${line:-${complaint##*$'\n'}}"
}

describe_request() {
  cloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='csv[no-heading](state.state,tpu.nodeSpec[0].node.labels.stepalign)'
}

describe_vm() {
  cloud compute tpus tpu-vm describe "$name" "${where[@]}" \
    --format='csv[no-heading](state,labels.stepalign,acceleratorType.basename())'
}

# Looks at the cloud: sets request, vm (none, unknown, or Google's word), ours, vm_type and phase.
look() {
  local label other_label
  describe_request && request=$answer || request=$(absence)
  describe_vm && vm=$answer || vm=$(absence)
  IFS=, read -r request label <<<"$request"
  IFS=, read -r vm other_label vm_type <<<"$vm"
  request=${request:-unknown} vm=${vm:-unknown}
  [[ $label == launched || $other_label == launched ]] && ours=1 || ours=0
  case $request/$vm in
    none/none) exists=no ;;
    unknown/unknown | unknown/none | none/unknown) exists=maybe ;;
    *) exists=yes ;;
  esac
  phase=$(phase_of "$request" "$vm")
}

# Only Google's own NOT_FOUND says that something is not there; no other failure does.
absence() { if [[ $complaint == *NOT_FOUND* ]]; then echo none; else echo unknown; fi; }

# ready, absent, waiting, lost (to be deleted and made anew), stopped, or unknown: nothing may be
# concluded, so nothing is made and nothing deleted.
phase_of() {
  case $1/$2 in
    none/none) echo absent ;;
    unknown/* | */unknown) echo unknown ;;
    SUSPENDED/* | FAILED/* | */PREEMPTED | */TERMINATED) echo lost ;;
    SUSPENDING/* | DELETING/* | */DELETING | */STOPPING) echo waiting ;;
    none/READY | ACTIVE/READY | PROVISIONING/READY) echo ready ;;
    */STOPPED) echo stopped ;;
    CREATING/none | ACCEPTED/none | WAITING_FOR_RESOURCES/none | PROVISIONING/none) echo waiting ;;
    */CREATING | */STARTING | */RESTARTING | */REPAIRING | */REIMAGING) echo waiting ;;
    *) echo unknown ;;
  esac
}

# Asks for the VM. Whether it was made is for the next look to say: a call that failed may have
# made it all the same, now or later, and `unclear` remembers that.
create() {
  local options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime"
    --labels=stepalign=launched --valid-until-duration="$valid_for" --async)
  ((spot)) && options+=(--spot)
  [[ -n $network ]] && options+=(--network="$network")
  say "asking for $name ($type$( ((spot)) && echo ', spot')), which costs from when it is ready"
  exists=maybe
  cloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}" && return
  unclear=1
  say "gcloud could not say that it was made: $(reason)"
}

# Deletes the VM and its request; returns 0 when the cloud says that both are gone.
delete_all() {
  local try
  for ((try = 0; try < 5; try++)); do
    if [[ $request == none ]]; then
      cloud "${delete_vm[@]}" || say "not deleted: $(reason)"
    else
      cloud "${delete_request[@]}" || say "not deleted: $(reason)"
    fi
    look
    [[ $exists == no ]] && return 0
    pause
  done
  return 1
}

# The last words of every end.
farewell() {
  if [[ $exists == no ]]; then
    ((unclear)) || { say "nothing named $name is left in $zone"; return; }
    say "nothing named $name is seen in $zone, but a call to make it failed without a clear answer."
    say "If it turns up after all, delete it:"
  elif [[ $exists == yes ]]; then
    say "still there, and billed while it is: $name (request $request, VM $vm). Delete it:"
  else
    say "$name may be there, and is billed if so. Delete it:"
  fi
  delete_commands >&2
}

# Deleting a request deletes its VM; the VM's own command is for one that may have none.
delete_commands() {
  [[ $request == none && $exists == yes ]] || printf '  gcloud%s\n' "$(printf ' %q' "${delete_request[@]}")"
  case $exists/$request in
    yes/none | yes/unknown | no/* | maybe/*) printf '  gcloud%s\n' "$(printf ' %q' "${delete_vm[@]}")" ;;
  esac
}

pause() {
  ((dry_run)) || [[ $poll_secs == 0 ]] && return
  sleep "$poll_secs" &
  child=$!
  wait "$child" || true
  child=
}

# What --dry-run is told: nothing is there, then all goes well.
pretend() {
  complaint=NOT_FOUND answer=
  case "$3 $4" in
    'queued-resources create') pretended=made ;;
    'queued-resources delete' | 'tpu-vm delete') pretended=gone ;;
    'queued-resources describe') [[ $pretended == nothing || $pretended == gone ]] && return 1 || answer=ACTIVE,launched ;;
    'tpu-vm describe') [[ $pretended == nothing || $pretended == gone ]] && return 1 || answer=READY,launched,$type ;;
    'tpu-vm ssh')
      case "$*" in
        *' start '*) pretended=running ;;
        *' follow '*) pretended=trained ;;
        *' state'*) answer="stepalign-state $(pretended_status) $job" ;;
      esac ;;
  esac
}

pretended_status() {
  case $pretended in running) echo running ;; trained) echo 0 ;; *) echo none ;; esac
}
