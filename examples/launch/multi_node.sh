#!/usr/bin/env bash
# Runs a recipe on several machines: Ray's head and the run on the first, Ray's workers on the others.
#
# Hardware: NODES machines with GPUS each, one network between them, and the project's folder, RUN_DIR, models and data
# under the same paths on all of them. docs/recipes.md has the steps.
#
#   first machine:  HEAD_IP=10.0.0.1 NODES=4 bash examples/launch/multi_node.sh head RECIPE [flags of the recipe]
#   the others:     HEAD_IP=10.0.0.1 bash examples/launch/multi_node.sh worker
#
# What listens: Ray's servers on all interfaces of each machine: PORT (6379) to PORT+7, 20000 to 29999, and on the head
# 44217 and 44227; then torch's rendezvous, NCCL and vLLM, on ports of their own. Ray asks for a token
# (RAY_AUTH_TOKEN_PATH, by default ~/.ray/auth_token, made by the head), so that others cannot run code through it;
# NCCL, gloo and vLLM ask for nothing, and nothing is encrypted: keep the machines in a network of their own. The
# dashboard listens on loopback.
#
# A machine that is lost ends the run; it starts again from the newest checkpoint (RESTARTS times) when a worker has
# come back, which waits for the head: start the same worker command again. Ctrl-C or SIGTERM to the head saves a
# checkpoint and stops both; the same commands go on.
#   NODE_IP (this machine's address, for a worker), CPUS (as Ray counts them; a run needs one for each GPU and some
#   more), RUN_DIR, RESTARTS, RESUME=0, WAIT_S (600)  by environment
#   DRY_RUN=1  print the commands and stop;  DOCTOR=0  do not look at the machine first
set -euo pipefail
# shellcheck source=../lib/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/launch.sh"

role=${1:-}
[[ $role =~ ^(head|worker)$ ]] || die "say what this machine is: head RECIPE, or worker"
: "${HEAD_IP:?name the address of the first machine: HEAD_IP=10.0.0.1}"
PORT=${PORT:-6379}
GPUS=${GPUS:-$(count_gpus)}
WAIT_S=${WAIT_S:-600}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export AUTOSCALER_METRIC_PORT=44217 DASHBOARD_METRIC_PORT=44227
# Ray would run its workers, here all that computes, behind everything else on the machine (nice 15)
export RAY_worker_niceness=${RAY_worker_niceness:-0}

ports=(
   --node-manager-port $((PORT + 1))
   --object-manager-port $((PORT + 2))
   --metrics-export-port $((PORT + 3))
   --dashboard-agent-grpc-port $((PORT + 4))
   --dashboard-agent-listen-port $((PORT + 5))
   --runtime-env-agent-port $((PORT + 6))
   --min-worker-port 20000 --max-worker-port 29999
)
node=(--num-gpus "$GPUS" --disable-usage-stats --block)
[ -z "${CPUS:-}" ] || node+=(--num-cpus "$CPUS")
show() { printf '%q ' "$@"; echo; }

if [ "$role" = worker ]; then
   cd "$(dirname "${BASH_SOURCE[0]}")/../.."
   ray=${ORZ_VENV:-.venv}/bin/ray
   [ -z "${NODE_IP:-}" ] || node+=(--node-ip-address "$NODE_IP")
   start=("$ray" start --address "$HEAD_IP:$PORT" "${ports[@]}" "${node[@]}")
   if [ -n "${DRY_RUN:-}" ]; then show "${start[@]}"; exit; fi
   examine
   [ -s "$RAY_AUTH_TOKEN_PATH" ] || say "waiting for the head's token in $RAY_AUTH_TOKEN_PATH"
   until [ -s "$RAY_AUTH_TOKEN_PATH" ] && timeout 5 bash -c ": </dev/tcp/$HEAD_IP/$PORT" 2>/dev/null; do
      [ $SECONDS -lt "$WAIT_S" ] ||
         die "no head at $HEAD_IP:$PORT, or no token in $RAY_AUTH_TOKEN_PATH (copy the head's), after WAIT_S=$WAIT_S s"
      sleep 1
   done
   exec "${start[@]}"
fi

shift
use "${1:-}"
shift
export NODES=${NODES:?say how many machines: NODES=4} GPUS
ray=${ORZ_VENV:-.venv}/bin/ray
start=("$ray" start --head --node-ip-address "$HEAD_IP" --port "$PORT" --dashboard-host 127.0.0.1
   --ray-client-server-port $((PORT + 7)) "${ports[@]}" "${node[@]}"
)
wait_for_all=("${ORZ_VENV:-.venv}/bin/python" examples/lib/wait_for_nodes.py "$HEAD_IP:$PORT" "$NODES" "$WAIT_S")
run=(env "RAY_ADDRESS=$HEAD_IP:$PORT" bash "$recipe" "${resuming[@]}" "$@")
if [ -n "${DRY_RUN:-}" ]; then
   show "${start[@]}"
   show "${wait_for_all[@]}"
   "${run[@]}"
   exit
fi
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
   mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
   (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
fi

ray_pid='' wait_pid='' run_pid=''
# shellcheck disable=SC2329
finish() { # the run first, which saves itself; Ray after it, which hangs if it is told so while it starts
   trap '' TERM INT
   local pid
   for pid in $wait_pid $run_pid; do
      kill -TERM "$pid" 2>/dev/null && wait "$pid" || true
   done
   [ -n "$ray_pid" ] && kill -TERM "$ray_pid" 2>/dev/null || return 0
   for _ in $(seq $((5 * ${RAY_STOP_S:-20}))); do
      kill -0 "$ray_pid" 2>/dev/null || return 0
      sleep 0.2
   done
   kill -KILL -- "-$ray_pid" 2>/dev/null || true # with all that it has started: its own process group
}
trap finish EXIT
trap 'exit 143' TERM INT
mkdir -p "$(dirname "$RUN_DIR")"
# In sessions of their own: Ctrl-C reaches this script alone, and each of them one signal, in this order
setsid "${start[@]}" >"$RUN_DIR.ray.log" 2>&1 &
ray_pid=$!
setsid "${wait_for_all[@]}" &
wait_pid=$!
while kill -0 "$wait_pid" 2>/dev/null; do
   kill -0 "$ray_pid" 2>/dev/null || die "Ray has ended: see $RUN_DIR.ray.log"
   sleep 0.2
done
wait "$wait_pid" || die "see $RUN_DIR.ray.log"
wait_pid=''
setsid "${run[@]}" &
run_pid=$!
status=0
wait "$run_pid" || status=$?
run_pid=''
exit "$status"
