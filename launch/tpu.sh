#!/usr/bin/env bash
# Runs pd_jax.main on a Cloud TPU VM, of one worker or many, by way of gcloud.
#
#   launch/tpu.sh run [flags] -- --config=configs/NAME.py --workdir=gs://BUCKET/NAME
#
# does all of the following in order, and again from the start where the VM is preempted,
# until the report is there. A run under way is only watched. One by one:
#
#   up                create the VM, or use the one that is there
#   install           this checkout, and JAX for TPU, on all workers
#   start -- ARGS     start pd_jax.main on all workers, in the background
#   tail              follow the log of worker 0
#   stop              let the run save and end, on all workers
#   fetch             report, pictures and metrics from --workdir into --to
#   down              delete the VM
#
#   --name=NAME       of the VM and its queued resource; default pd-jax
#   --type=TYPE       as in v5litepod-64; needed to create one
#   --version=NAME    of the VM's image; default: JAX's choice for the type
#   --zone=ZONE  --project=PROJECT        default: gcloud's own configuration
#   --spot            cheaper, can be preempted
#   --queued          by a queued resource: waits until there is room
#   --down            with run: delete the VM when the run is done
#   --workdir=DIR     with fetch: the run's folder, gs://... or a path on worker 0
#   --to=DIR          with fetch and run: default runs/NAME, by the workdir's last part
#   --python=VERSION  on the workers; default 3.12
#   --grace=SECONDS   with stop: for saving, before the run is killed; default 120
#   --poll=SECONDS    between looks; default 30
#   --dry-run         print the commands and do nothing
#
# Flags' defaults can be set as PD_JAX_NAME, PD_JAX_ZONE and so on. Codes: 0 done; 1 failed;
# 2 a mistake in what was given (here or to pd_jax.main); 3 a run is under way; 143 stopped.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

option=(
  [name]=pd-jax [type]="" [version]="" [zone]="" [project]="" [workdir]="" [to]=""
  [python]=3.12 [grace]=120 [poll]=30
)
switch+=([spot]="" [queued]="" [down]="")
parse "$@"
check_number grace 0
check_number poll 0
case ${words[*]} in
  start | run) check_arguments ;;
  up | install | tail | stop | fetch | down) ;;
  *) usage_error "give one command, such as run, got '${words[*]}'" ;;
esac

where=()
for place in zone project; do
  [[ -z ${option[$place]} ]] || where+=("--$place=${option[$place]}")
done
checkout=$(dirname "${BASH_SOURCE[0]}")/..

say() {
  echo "$(date +%H:%M:%S) $*" >&2
}

pause() {
  call sleep "${option[poll]}"
}

# Sets `answer` to what a command prints; in a dry run, to $1.
ask() {
  local pretended=$1
  shift
  if [[ ${switch[dry-run]} ]]; then
    call "$@"
    answer=$pretended
  else
    answer=$("$@" 2>"$errors")
  fi
}

# tpu KIND VERB [FLAGS], KIND being tpu-vm or queued-resources.
tpu() {
  local kind=$1 verb=$2
  shift 2
  call gcloud compute tpus "$kind" "$verb" "${option[name]}" "${where[@]}" --quiet "$@"
}

# Sets `state` to a resource's, or MISSING; $2 in a dry run.
look() {
  local field=state
  [[ $1 == tpu-vm ]] || field=state.state
  if ask "$2" gcloud compute tpus "$1" describe "${option[name]}" "${where[@]}" \
    --quiet --format="value($field)"; then
    state=$answer
  elif grep -qiE 'not_found|not found' "$errors"; then
    state=MISSING
  else
    cat "$errors" >&2
    return 1
  fi
}

on_all() {
  tpu tpu-vm ssh --worker=all --command="$1"
}

worker=pd_jax/launch/tpu_worker.sh

# What a worker does, and what it does where nothing is installed yet.
if_there() {
  echo "if [ -x $worker ]; then $worker $1; else $2; fi"
}

# ---- the VM

image() {
  case ${option[type]} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  [[ ${option[type]} ]] || usage_error "no VM ${option[name]} yet: --type=TYPE is needed"
  local version=${option[version]:-$(image)} spot=()
  [[ -z ${switch[spot]} ]] || spot=(--spot)
  if [[ ${switch[queued]} ]]; then
    tpu queued-resources create --node-id="${option[name]}" \
      --accelerator-type="${option[type]}" --runtime-version="$version" "${spot[@]}"
  else
    tpu tpu-vm create --accelerator-type="${option[type]}" --version="$version" \
      "${spot[@]}"
  fi
}

# Deletes the VM, with the queued resource that it came from.
remove() {
  local pretended=MISSING
  [[ -z ${switch[queued]} ]] || pretended=ACTIVE
  look queued-resources "$pretended" || return
  if [[ $state != MISSING ]]; then
    tpu queued-resources delete --force
    return
  fi
  look tpu-vm READY || return
  [[ $state == MISSING ]] || tpu tpu-vm delete
}

lost() {
  [[ $state =~ ^(PREEMPTED|TERMINATED|SUSPENDED|FAILED|MISSING)$ ]]
}

# Returns when the VM is ready; exits where that cannot be. (No `set -e` is relied on
# here and in what `run` calls: it is off wherever a caller asks for the outcome.)
up() {
  local pretended=MISSING before=""
  while :; do
    look tpu-vm "$pretended" || fail "gcloud cannot say how ${option[name]} is"
    if [[ $state == MISSING && ${switch[queued]} ]]; then
      look queued-resources MISSING || fail "gcloud cannot say how the queue is"
    fi
    [[ $state == "$before" ]] || say "${option[name]}: $state"
    pretended=READY
    case $state in
      READY) return ;;
      MISSING) create || fail "gcloud did not create ${option[name]}" ;;
      ACTIVE) # a queue whose VM is gone; or has come since it was looked for
        if [[ $before == ACTIVE ]]; then
          remove || fail "gcloud did not delete what is left of ${option[name]}"
        fi
        pause
        ;;
      STOPPED) tpu tpu-vm start || fail "gcloud did not start ${option[name]}" ;;
      *)
        if lost; then
          remove || fail "gcloud did not delete what is left of ${option[name]}"
        else
          pause
        fi
        ;;
    esac
    before=$state
  done
}

# ---- the run

install() {
  local archive=$scratch/pd_jax.tar.gz
  call tar --create --gzip --file="$archive" --directory="$checkout" \
    --exclude=__pycache__ pyproject.toml README.md pd_jax configs launch &&
    call gcloud compute tpus tpu-vm scp "$archive" "${option[name]}:pd_jax.tar.gz" \
      --worker=all "${where[@]}" --quiet &&
    on_all "mkdir -p pd_jax && cd pd_jax && \
{ [ ! -x launch/tpu_worker.sh ] || launch/tpu_worker.sh idle; } && \
rm -rf pd_jax configs launch && tar xzf ../pd_jax.tar.gz && \
launch/tpu_worker.sh install --python=$(quote "${option[python]}")"
}

# All are asked first, so that not some start and some refuse.
start() {
  on_all "$worker idle" && on_all "$worker start -- $(quote "${arguments[@]}")"
}

stop() {
  on_all "$(if_there "stop --grace=${option[grace]}" true)"
}

log() {
  tpu tpu-vm ssh --worker=0 --command="tail -n 100 ${1:-} pd_jax_run/log"
}

# Sets `answer` to worker 0's status, a line as tpu_worker.sh says.
status() {
  ask "$1" gcloud compute tpus tpu-vm ssh "${option[name]}" "${where[@]}" --quiet \
    --worker=0 --command="$(if_there status "echo none")"
}

# fetch WORKDIR DIR: all of a run but its checkpoints and samples.
fetch() {
  call mkdir -p "$2"
  if [[ $1 == gs://* ]]; then
    call gcloud storage rsync --recursive --exclude='^checkpoints/.*|^evaluation/.*' \
      "$1" "$2"
    return
  fi
  local folder=$1 pack unpack=(tar xz -C "$2")
  [[ $folder == /* ]] || folder=pd_jax/$folder
  pack=(gcloud compute tpus tpu-vm ssh "${option[name]}" "${where[@]}" --quiet --worker=0
    --command="tar cz --exclude=./checkpoints --exclude=./evaluation -C $(quote "$folder") .")
  if [[ ${switch[dry-run]} ]]; then
    echo "$(quote "${pack[@]}") | $(quote "${unpack[@]}")"
  else
    "${pack[@]}" | "${unpack[@]}"
  fi
}

# ---- all of it

# Again a few times: a VM that has just come up refuses connections for a while.
patiently() {
  local tries
  for ((tries = 1; tries < 5; tries++)); do
    "$@" && return
    say "$1 failed, trying again"
    pause
  done
  "$@"
}

# So that none is left alone where not all have started.
start_all() {
  start || {
    stop
    return 1
  }
}

# Starts on a VM that may be new, or have anything on it.
begin() {
  patiently stop && patiently install && patiently start_all
}

# Makes a lost VM anew, for as long as it takes; code 1 where it is no longer needed.
recover() {
  say "${option[name]} is $state: making it anew"
  if [[ $run == gs://* ]] && ask "" gcloud storage ls "$run/report.json"; then
    return 1
  fi
  until (up); do
    say "trying again"
    pause
  done
  begin || true # what is wrong is seen at the next look
}

# Returns when the run has ended for good, with its code.
watch() {
  local now before="" misses=0 restarts=0
  while :; do
    if status "ended 0 (say)"; then
      now=$answer
      misses=0
    else
      now="worker 0 does not answer"
      misses=$((misses + 1))
    fi
    [[ $now == "$before" ]] || say "$now"
    before=$now
    case $now in
      running*)
        pause
        continue
        ;;
      "ended 0 "*) return ;;
      "ended 2 "*)
        log
        return 2
        ;;
      stopped) return 143 ;;
    esac
    # Anything else may come of a preemption, which is not always known at once.
    pause
    look tpu-vm READY || continue
    if lost || [[ $state == STOPPED ]]; then
      recover || return 0
    elif [[ $state != READY ]] || ((misses > 0 && misses < 10)); then
      continue
    elif [[ $now == "ended 1 "* ]]; then
      log
      return 1
    elif ((restarts == 3)); then
      say "that was the fourth time on a VM that is well: giving up"
      log
      return 1
    else
      restarts=$((restarts + 1))
      begin || fail "could not start again"
    fi
  done
}

run_all() {
  [[ ${option[type]} ]] || usage_error "run needs --type, to make the VM anew"
  run=$(workdir)
  [[ $run == gs://* ]] ||
    echo "warning: the run's folder is $run on the VM's own disk, so a preemption loses" \
      "the run; to go on after one, give --workdir=gs://BUCKET/NAME after --" >&2
  trap 'say "the run goes on; the same command watches it again"; exit 130' INT
  up
  patiently status none
  case $answer in
    running*) say "a run is under way already: watching it" ;;
    *) begin || fail "could not start" ;;
  esac
  local code=0
  watch || code=$?
  ((code == 0)) || exit "$code"
  local to=${option[to]:-runs/${run##*/}}
  fetch "$run" "$to"
  [[ ${switch[dry-run]} || -f $to/report.json ]] || fail "the run ended without a report"
  say "report: $to/report.md"
  if [[ ${switch[down]} ]]; then
    remove
  else
    say "the VM ${option[name]} is still there, and paid for: ${0##*/} down"
  fi
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
errors=$scratch/errors
case ${words[*]} in
  up | install | start | stop) "${words[0]}" ;;
  tail) log -F ;;
  down) remove ;;
  run) run_all ;;
  fetch)
    [[ ${option[workdir]} ]] || usage_error "fetch needs --workdir=gs://... or a path"
    workdir=${option[workdir]%/}
    fetch "$workdir" "${option[to]:-runs/${workdir##*/}}"
    ;;
esac
