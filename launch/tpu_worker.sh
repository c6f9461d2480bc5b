#!/usr/bin/env bash
# What tpu.sh runs on each worker of a TPU VM: the one run that this worker may have.
#
#   tpu_worker.sh install [--python=3.12]   this checkout and JAX, in a virtual environment
#   tpu_worker.sh start -- ARGS             start in the background; code 3 where one runs
#   tpu_worker.sh idle                      code 3 where one runs
#   tpu_worker.sh status                    one line: "running TEXT", "ended CODE TEXT",
#                                           "stopped" or "none"; TEXT is the log's last line
#   tpu_worker.sh stop [--grace=120]        let it save and end; KILL it after the grace
#
# In ~/pd_jax_run: `pid`, `log` (of all starts), `exit` (the code), `stopped` and `lock`,
# which the run holds: it is free as soon as the run is gone, however that came about.

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
option=([python]=3.12 [grace]=120)
parse "$@"

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/pd_jax_venv
kept=$HOME/pd_jax_run
mkdir -p "$kept"
read -ra main <<<"${PD_JAX_COMMAND:-$venv/bin/python -m pd_jax.main}"

# The lock is held while this process, or a child that inherits it, lives.
exec {lock}>"$kept/lock"
free() {
  flock --nonblock "$lock"
}

idle() {
  free || fail "$(hostname): a run is under way here: see tail, or use stop first" 3
}

install() {
  # The images' own Python is older than pd_jax needs; uv brings a newer one.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python="${option[python]}" "$venv"
  python3 -m uv pip install --quiet --python="$venv" "jax[tpu]" --editable "${checkout}[gcs]"
}

# The run's parent, which leaves its exit code behind.
supervise() {
  local code=0 child
  trap 'kill -TERM "$child"' TERM
  "${main[@]}" "${arguments[@]}" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # it was the trap that ended the wait
    code=0
    wait "$child" || code=$?
  done
  echo "$code" >"$kept/exit"
}

start() {
  rm -f "$kept/exit" "$kept/stopped"
  cd "$checkout"
  supervise=$checkout/launch/tpu_worker.sh
  nohup setsid "$supervise" supervise -- "${arguments[@]}" \
    </dev/null >>"$kept/log" 2>&1 &
  echo "$!" >"$kept/pid"
}

stop() {
  free && return
  touch "$kept/stopped"
  kill -TERM "$(<"$kept/pid")" || true
  flock --timeout "${option[grace]}" "$lock" || kill -KILL -- "-$(<"$kept/pid")"
}

status() {
  local text=""
  [[ ! -f $kept/log ]] || text=$(tail -c 2000 "$kept/log" | tr '\r' '\n' | tail -n 1)
  if ! free; then
    echo "running $text"
  elif [[ -f $kept/stopped ]]; then
    echo stopped
  elif [[ -f $kept/exit ]]; then
    echo "ended $(<"$kept/exit") $text"
  else
    echo none
  fi
}

case ${words[*]} in
  start)
    idle
    start
    ;;
  install | idle | supervise | status | stop) "${words[0]}" ;;
  *) usage_error "unknown command '${words[*]}'" ;;
esac
