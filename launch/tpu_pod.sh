#!/usr/bin/env bash
# A run on a Cloud TPU slice: creates the slice, installs, runs, resumes after pre-emptions, and deletes the slice.
#
#   export NAME=ddgan ZONE=us-west4-a TYPE=v5litepod-16
#   launch/tpu_pod.sh all -- python -m ddgan_jax.main --config configs/cifar10.py --workdir gs://BUCKET/cifar10
#
# create    requests the slice (a queued resource; SPOT=1 for spot capacity) and waits until it is active
# install   copies the code to all workers (SOURCE=git URL, otherwise this folder) and installs it
# run -- …  starts the command on all workers in the background
# logs      follows worker 0 until the run ends; exits with the run's status
# resume -- … after a pre-emption: requests the slice again and runs the same command, which resumes from its workdir
# delete    deletes the slice
# all -- …  create, install, run, logs, resume as often as needed, and delete when the run has succeeded
#
# Prints each gcloud command before it runs it; --dry-run only prints. Other variables: PROJECT, RUNTIME (the VM's image),
# PYTHON (default 3.12), POLL (seconds between polls of the queue, default 30).
set -euo pipefail

fail() { echo "Error: $*" >&2; exit 2; }

DRY_RUN=
[ "${1:-}" = --dry-run ] && { DRY_RUN=1; shift; }
verb=${1:-}
case "$verb" in
  create | install | run | logs | resume | delete | all) shift ;;
  *) fail "'$verb' is not a command; use [--dry-run] create, install, run, logs, resume, delete or all" ;;
esac
[ "${1:-}" = -- ] && shift
case "$verb" in
  run | resume | all) [ $# -gt 0 ] || fail "$verb: no command; put it after --" ;;
  *) [ $# -eq 0 ] || fail "$verb: takes no command, but got '$1'" ;;
esac
command=("$@")
[ -n "${NAME:-}" ] || fail 'NAME is not set; export a name for the TPU, such as NAME=ddgan'
[ -n "${ZONE:-}" ] || fail 'ZONE is not set; export a zone with TPUs, such as ZONE=us-west4-a'
case "$verb" in
  create | resume | all)
    [ -n "${TYPE:-}" ] || fail 'TYPE is not set; export the type of the slice, such as TYPE=v5litepod-16' ;;
esac
case "${TYPE:-}" in
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=tpu-ubuntu2204-base ;;
esac
where=(--zone="$ZONE")
[ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")

quote="'\\''"
tpus() {
  local word line='+ gcloud compute tpus'
  for word in "$@"; do
    case "$word" in
      *[!a-zA-Z0-9_./:=,@%+-]*) line+=" '${word//\'/$quote}'" ;; # quoted, so that the line can be pasted
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "$line" >&2
  [ -n "$DRY_RUN" ] || gcloud compute tpus "$@"
}
on_workers() { tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"; }
state() { tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'; }

create() {
  local tier=()
  [ -z "${SPOT:-}" ] || tier=(--spot)
  tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" --accelerator-type="$TYPE" \
    --runtime-version="${RUNTIME:-$image}" ${tier[@]+"${tier[@]}"} # an empty list is unset to macOS' bash
  local now
  while now=$(state); do
    case "$now" in
      ACTIVE | '') return ;; # empty: a dry run
      FAILED | SUSPENDED | SUSPENDING | DELETING) fail "the request for $NAME is $now; remove it with '$0 delete'" ;;
    esac
    sleep "${POLL:-30}"
  done
  fail "the state of $NAME cannot be read"
}

# Lists the files to pack in the current folder: those of git, or else all but environments and runs.
files() {
  git ls-files -z -co --exclude-standard 2>/dev/null ||
    find . -type d \( -name '.?*' -o -name __pycache__ -o -name venv -o -path ./runs \) -prune -o -type f -print0
}

# The image's Python may be older than 3.11, so uv installs one.
install() {
  local unpack="rm -rf ~/ddgan_jax && mkdir ~/ddgan_jax && tar -xzf ~/ddgan_jax.tar.gz -C ~/ddgan_jax"
  if [ -n "${SOURCE:-}" ]; then
    unpack="rm -rf ~/ddgan_jax && git clone -q --depth 1 $(printf %q "$SOURCE") ~/ddgan_jax"
  else
    local archive root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    archive=${TMPDIR:-/tmp}/ddgan_jax.tar.gz
    # Files by name, because tar fails if a folder changes while it is packed.
    [ -n "$DRY_RUN" ] || (cd "$root" && files | tar -czf "$archive" --null -T -)
    tpus tpu-vm scp "$archive" "$NAME:ddgan_jax.tar.gz" "${where[@]}" --worker=all
  fi
  on_workers all "$unpack && cd ~/ddgan_jax && python3 -m pip install -q --user uv \
&& ~/.local/bin/uv venv -q --python ${PYTHON:-3.12} .venv \
&& ~/.local/bin/uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}

run() {
  local quoted inner
  quoted=$(printf ' %q' "${command[@]}")
  # A pre-empted VM sends TERM to all processes: the run saves and exits with 0, but is not finished.
  inner="trap stopped=143 TERM; . .venv/bin/activate;$quoted; status=\$?; echo \${stopped:-\$status} > ~/run.status"
  # Detached, or it would end with the connection. A second run would compete for the chips.
  on_workers all "if kill -0 \$(cat ~/run.pid 2>/dev/null) 2>/dev/null; then echo 'already running; see logs' >&2; exit 3; fi; \
rm -f ~/run.status; cd ~/ddgan_jax || exit; \
setsid nohup bash -c $(printf %q "$inner") > ~/run.log 2>&1 < /dev/null & echo \$! > ~/run.pid"
}

logs() {
  # A restarted machine has no status file: 143, stopped by a signal.
  on_workers 0 "tail -n +1 -F --pid=\$(cat ~/run.pid) ~/run.log; exit \$(cat ~/run.status || echo 143)"
}

resume() {
  local now
  now=$(state) || fail "the state of $NAME cannot be read"
  if [ "$now" != ACTIVE ]; then
    delete
    create
    install
  fi
  run
}

all() {
  create
  install
  run
  local status now
  while true; do
    status=0
    logs || status=$?
    now=$(state) || { sleep "${POLL:-30}"; continue; }
    if [ "$now" = ACTIVE ] || [ -n "$DRY_RUN" ]; then
      [ "$status" -ne 0 ] || break
      # 255 is from ssh: the connection was lost, and the run may continue, or its machine is being pre-empted.
      [ "$status" -ne 255 ] || { sleep "${POLL:-30}"; continue; }
      # A new slice would not fix a failed run; the slice is kept for inspection.
      [ "$status" -eq 143 ] || fail "the run ended with status $status; $NAME is kept; see '$0 logs', then '$0 delete'"
    fi
    resume
  done
  delete
}

delete() { tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet; }

"$verb"
