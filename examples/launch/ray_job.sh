#!/usr/bin/env bash
# Submits a recipe as a job to a Ray cluster that runs already; the job goes on when this machine goes away.
#
# Hardware: the cluster's, e.g. one that examples/launch/multi_node.sh or your cloud has started. The project's folder,
# RUN_DIR, models and data lie under the same paths on all its machines; nothing is uploaded.
# Opens no port. It speaks to the job server, the dashboard's, which listens on the head's loopback: run it there, or
# bring it here by `ssh -L 8265:127.0.0.1:8265 HEAD`. A cluster with tokens needs the same RAY_AUTH_MODE and
# RAY_AUTH_TOKEN_PATH here.
#
#   bash examples/launch/ray_job.sh examples/train_orz_qwen2.5_7b.sh [flags of the recipe]
#   `ray job stop ID` saves a checkpoint within --orz.stop_timeout_s of SIGTERM, if Ray waits so long
#   (RAY_JOB_STOP_WAIT_TIME_S, set here); submitting again goes on.
#   RAY_API_SERVER_ADDRESS (http://127.0.0.1:8265), RUN_DIR, RESTARTS, RESUME=0, and the recipe's own  by environment
#   DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/launch.sh"

use "${1:-}"
shift
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-300}
job=(env)
for name in RUN_DIR MODEL CRITIC DATA DATA_CN ARM NODES GPUS KL_COEF MAX_LEN ORZ_VENV; do
   [ -z "${!name:-}" ] || job+=("$name=${!name}")
done
job+=(bash "$recipe" "${resuming[@]}" "$@")
command=("${ORZ_VENV:-.venv}/bin/ray" job submit
   --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
   --no-wait
   --runtime-env-json "{\"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"$RAY_JOB_STOP_WAIT_TIME_S\"}}"
   -- "${job[@]}"
)
if [ -n "${DRY_RUN:-}" ]; then
   printf '%q ' "${command[@]}"
   echo
   exit
fi
exec "${command[@]}"
