#!/usr/bin/env bash
# Runs a recipe under Slurm, on one node or several, and goes on by itself after a time limit or a preemption.
#
# Hardware: the job's nodes (-N), all GPUs of each.
#   sbatch -N 4 --time 24:00:00 examples/launch/slurm.sh examples/train_orz_qwen2.5_7b.sh [flags of the recipe]
# RUN_DIR (default runs/RECIPE-JOB), MODEL, DATA, ARM ...  by environment: sbatch hands it on. Submit from the
# project's folder. DRY_RUN=1 bash examples/launch/slurm.sh RECIPE  prints the commands.
#
# Ten minutes before the time limit Slurm sends SIGTERM to this script: the run finishes the step in hand, writes a
# checkpoint and ends, and the job is queued again under its own number, so that it goes on with the same RUN_DIR. A
# job that is preempted or has lost a node is queued again by Slurm itself (--requeue); it then goes on from the
# newest checkpoint, since there may be no time to write one. Steps longer than that: a longer --signal, and
# --orz.stop_timeout_s to go with it. What listens, on several nodes: see multi_node.sh. HEAD_IP: the first node's
# address in the network to use.
#SBATCH --job-name=orz
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@600
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
# Slurm runs a copy of this file: the project is where sbatch was called
launch=$(realpath -s "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/../..}")/examples/launch
[ -f "$launch/multi_node.sh" ] || {
   echo "slurm.sh: no examples/launch in ${SLURM_SUBMIT_DIR:-.}: call sbatch in the project's folder" >&2
   exit 2
}
export NODES=${SLURM_JOB_NUM_NODES:-1}
export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
recipe=${1:?name a recipe: sbatch examples/launch/slurm.sh RECIPE}
shift
# of the ten minutes, what starting and ending takes is left to it
flags=(--orz.stop_timeout_s 480)
[ "${RESUME:-1}" = 1 ] || flags=()

if [ "$NODES" -gt 1 ]; then
   read -r first _ < <(hostname --all-ip-addresses)
   export HEAD_IP=${HEAD_IP:-$first}
   workers=(srun --nodes $((NODES - 1)) --ntasks $((NODES - 1)) --relative 1 --kill-on-bad-exit=0
      bash "$launch/multi_node.sh" worker
   )
   run=(bash "$launch/multi_node.sh" head "$recipe" "${flags[@]}" "$@")
else
   run=(bash "$launch/one_node.sh" "$recipe" "${flags[@]}" "$@")
fi
if [ -n "${DRY_RUN:-}" ]; then
   [ "$NODES" = 1 ] || { printf '%q ' "${workers[@]}"; echo; }
   exec "${run[@]}"
fi

stopped=
trap 'stopped=1; kill -TERM "$run_pid" 2>/dev/null || true' TERM
"${run[@]}" &
run_pid=$!
if [ "$NODES" -gt 1 ]; then "${workers[@]}" & fi
status=0
wait "$run_pid" || status=$?
while kill -0 "$run_pid" 2>/dev/null; do # the first wait ends when the signal comes
   status=0
   wait "$run_pid" || status=$?
done
if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
   echo "[launch] stopped by Slurm (status $status): queued again, to go on" >&2
   exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status" # Slurm ends the workers with the job
