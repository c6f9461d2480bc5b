#!/usr/bin/env bash
# Submits pd_jax.main to SLURM, one process for each GPU, on one node or several.
#
#   launch/slurm.sh [flags] -- --config=configs/NAME.py [pd_jax.main's flags]
#
#   --nodes=N             default 1
#   --gpus-per-node=N     default 1
#   --cpus-per-task=N     CPU cores for each GPU; default 8
#   --time=TIME           as sbatch has it: 24:00:00, 2-00:00:00
#   --partition=NAME  --account=NAME  --qos=NAME  --mem=SIZE (of a node)
#   --job-name=NAME       default: that of the run's folder
#   --venv=DIR            a virtual environment to activate, on shared storage
#   --container=IMAGE     instead: FILE.sif by Apptainer, anything else by pyxis
#   --mounts=A:B,C:D      folders for the container, beside the current one
#   --logs=DIR            default: beside the run's folder, WORKDIR.logs
#   --dry-run             print the submission and do nothing
#
# Submit from the checkout; it and the run's folder are on storage that all nodes share.
# 90 s before its time is up the run is told to save, and the job goes back into the
# queue, as it does when it is preempted or a node fails; it ends when the run is done.
# Flags' defaults can be set as PD_JAX_PARTITION and so on, sbatch's own further options
# as its SBATCH_ variables; PD_JAX_COMMAND replaces "python -m pd_jax.main".

set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

option=(
  [nodes]=1 [gpus-per-node]=1 [cpus-per-task]=8 [time]="" [partition]="" [account]=""
  [qos]="" [mem]="" [job-name]="" [venv]="" [container]="" [mounts]="" [logs]=""
)
parse "$@"
((${#words[@]} == 0)) || usage_error "unexpected ${words[0]}"
for name in nodes gpus-per-node cpus-per-task; do
  check_number "$name" 1
done
[[ -z ${option[venv]} || -z ${option[container]} ]] ||
  usage_error "--venv and --container exclude each other"
[[ -z ${option[mounts]} || ${option[container]} ]] ||
  usage_error "--mounts is for a --container"
check_arguments

run=$(workdir)
if [[ -z ${option[logs]} ]]; then
  # Not in the run's folder, which must hold nothing foreign when the run begins.
  if [[ $run == gs://* ]]; then
    option[logs]=runs/${run##*/}.logs
  else
    option[logs]=$run.logs
  fi
fi
option[job-name]=${option[job-name]:-${run##*/}}

submission=(
  sbatch
  --nodes="${option[nodes]}"
  --ntasks-per-node="${option[gpus-per-node]}"
  --gpus-per-node="${option[gpus-per-node]}"
  --cpus-per-task="${option[cpus-per-task]}"
  --job-name="${option[job-name]}"
  --output="${option[logs]}/%j.log"
  --open-mode=append
  --requeue
  --signal=TERM@90
)
for name in time partition account qos mem; do
  [[ -z ${option[$name]} ]] || submission+=("--$name=${option[$name]}")
done

# Every task sees all GPUs of its node: JAX picks its own by the task's local number.
# The first to end must not take the others with it while they still save, so no
# --kill-on-bad-exit; JAX itself notices a lost process in 60 s.
step=(
  srun --cpus-per-task="${option[cpus-per-task]}" --gpu-bind=none --label
  --kill-on-bad-exit=0 --wait=300
)
read -ra main <<<"${PD_JAX_COMMAND:-python -m pd_jax.main}"
mounts=$PWD:$PWD${option[mounts]:+,${option[mounts]}}
case ${option[container]} in
  "") ;;
  *.sif) step+=(apptainer exec --nv --pwd "$PWD" --bind "$mounts" "${option[container]}") ;;
  *)
    step+=(
      --container-image="${option[container]}"
      --container-mounts="$mounts"
      --container-workdir="$PWD"
    )
    ;;
esac
step+=("${main[@]}" "${arguments[@]}")

script="#!/usr/bin/env bash
set -e
cd $(quote "$PWD")
"
[[ -z ${option[venv]} ]] || script+="source $(quote "${option[venv]}/bin/activate")
"
# The signal ahead of the time limit goes to the tasks alone, so this shell sees them end
# with 143 and queues the job anew. scancel ends this shell too: the job stays cancelled.
script+="code=0
$(quote "${step[@]}") || code=\$?
if [ \$code -eq 143 ]; then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \$code"

call mkdir -p "${option[logs]}"
if [[ ${switch[dry-run]} ]]; then
  printf "%s <<'END'\n%s\nEND\n" "$(quote "${submission[@]}")" "$script"
else
  "${submission[@]}" <<<"$script"
  echo "log: ${option[logs]}/JOB.log"
fi
