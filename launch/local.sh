#!/usr/bin/env bash
# Runs pd_jax.main as N processes on this machine.
#
#   launch/local.sh N [flags] -- --config=configs/NAME.py [pd_jax.main's flags]
#
#   --gpus                    process i on the i-th GPU (of CUDA_VISIBLE_DEVICES, if set);
#                             without it on CPU, with Gloo collectives
#   --devices-per-process=K   K devices in each process (CPU only)
#   --grace=SECONDS           from the first process that ends with an error to the
#                             KILL of those that do not end by themselves; default 60
#   --dry-run                 print the commands and do nothing
#
# Lines of process i > 0 begin with [i]. Ctrl-C and SIGTERM go to every process, which
# saves and ends; the same command goes on. Where one ends with an error, the others are
# stopped, and its exit code is this script's. Flags' defaults can be set as
# PD_JAX_GRACE and so on; PD_JAX_COMMAND replaces "python -m pd_jax.main".

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

option=([devices-per-process]="" [grace]=60)
switch+=([gpus]="")
parse "$@"
[[ ${words[*]} =~ ^[1-9][0-9]{0,3}$ ]] ||
  usage_error "give one number of processes, got '${words[*]}'"
count=${words[0]}
check_number grace 0
if [[ ${option[devices-per-process]} ]]; then
  [[ -z ${switch[gpus]} ]] || usage_error "--devices-per-process is for CPU, not --gpus"
  check_number devices-per-process 1
fi
gpus=()
if [[ ${switch[gpus]} ]]; then
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
  ((${#gpus[@]} >= count)) ||
    usage_error "$count processes, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
fi
check_arguments
read -ra main <<<"${PD_JAX_COMMAND:-python -m pd_jax.main}"

# A port on which nothing listens, below those that systems give to clients.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Sets `command` to process $1's.
compose() {
  command=(
    env
    JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
    JAX_NUM_PROCESSES="$count"
    JAX_PROCESS_ID="$1"
  )
  if [[ ${switch[gpus]} ]]; then
    command+=(CUDA_VISIBLE_DEVICES="${gpus[$1]}")
  else
    command+=(JAX_PLATFORMS=cpu)
  fi
  if [[ ${option[devices-per-process]} ]]; then
    local force=--xla_force_host_platform_device_count
    command+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$force=${option[devices-per-process]}")
  fi
  command+=("${main[@]}" "${arguments[@]}")
}

port=$(free_port)
if [[ ${switch[dry-run]} ]]; then
  for ((i = 0; i < count; i++)); do
    compose "$i"
    quote "${command[@]}"
    ((i == 0)) || printf ' 2>&1 | %s' "$(quote sed -u "s/^/[$i] /")"
    echo " &"
  done
  exit 0
fi

# A group's leader is told to stop; a KILL is for the whole group, with whatever helpers
# the leader has. (A TERM to the helpers would break the leader's saving.)
tell() {
  local signal=$1 pid
  shift
  for pid; do
    if [[ $signal == KILL ]]; then
      kill -KILL -- "-$pid" 2>/dev/null || true
    else
      kill "-$signal" "$pid" 2>/dev/null || true
    fi
  done
}

# The guard outlives this script where that is killed outright: its input, a line for
# each start and end, breaks off then without the word "bye", and it stops what runs.
guard() {
  trap '' INT TERM HUP
  local event pid waited
  local -A running=()
  while read -r event pid; do
    case $event in
      started) running[$pid]=yes ;;
      ended) unset "running[$pid]" ;;
      bye) exit 0 ;;
    esac
  done
  tell TERM "${!running[@]}"
  for ((waited = 0; waited < 5 * option[grace]; waited++)); do
    kill -0 "${!running[@]}" 2>/dev/null || break
    sleep 0.2
  done
  tell KILL "${!running[@]}"
}
exec {guarded}> >(guard)

# While processes are being started, a signal waits until all are known.
pending=""
trap 'pending=INT' INT
trap 'pending=TERM' TERM HUP

alive=()
printers=()
for ((i = 0; i < count; i++)); do
  [[ -z $pending ]] || break
  compose "$i"
  out=1
  err=2
  if ((i > 0)); then
    # Not to be stopped by Ctrl-C: what the processes say at their end is printed too.
    exec {pipe}> >(
      trap '' INT TERM HUP
      exec sed -u "s/^/[$i] /" {guarded}>&-
    )
    printers+=($!)
    out=$pipe
    err=$pipe
  fi
  # Job control gives each a process group of its own, so that a Ctrl-C arrives once,
  # and leaves SIGINT at its default.
  set -m
  "${command[@]}" </dev/null >&"$out" 2>&"$err" {guarded}>&- &
  set +m
  alive[i]=$!
  echo "started $!" >&"$guarded"
  ((i == 0)) || exec {pipe}>&-
done

received=""
# shellcheck disable=SC2329 # the traps call it
forward() {
  received=$1
  tell "$1" "${alive[@]}"
}
trap 'forward INT' INT
trap 'forward TERM' TERM HUP
[[ -z $pending ]] || forward "$pending"

# From here on bash would report every job that is killed.
exec {say}>&2 2>/dev/null

failed=0
deadline=""
while ((${#alive[@]})); do
  for i in "${!alive[@]}"; do
    pid=${alive[i]}
    kill -0 "$pid" 2>/dev/null && continue
    code=0
    wait "$pid" 2>/dev/null || code=$?
    unset "alive[$i]"
    tell KILL "$pid"
    echo "ended $pid" >&"$guarded"
    if ((code && !failed)); then
      failed=$code
      deadline=$((SECONDS + option[grace] + 1)) # SECONDS is cut to whole ones
      # Those that are saving, as a signal asked, must not hear a second one.
      if [[ -z $received ]] && ((${#alive[@]})); then
        echo "process $i ended with code $code: stopping the others" >&"$say"
        tell TERM "${alive[@]}"
      fi
    fi
  done
  if [[ $deadline ]] && ((SECONDS >= deadline)); then
    tell KILL "${alive[@]}"
  fi
  ((${#alive[@]} == 0)) || sleep 0.1 || true # a Ctrl-C ends this sleep too
done
((${#printers[@]} == 0)) || wait "${printers[@]}" || true
echo bye >&"$guarded"
exit "$failed"
