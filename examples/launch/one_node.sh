#!/usr/bin/env bash
# Runs a recipe on this machine, and goes on with it after a failure or a restart of the machine.
#
# Hardware: what the recipe asks for, on one machine; NODES=1 and GPUS (all that nvidia-smi lists) are set for it.
# The run starts a Ray of its own, and nothing listens beyond loopback but torch's and NCCL's own ports on GPUs
# (docs/security.md). Ctrl-C or SIGTERM saves a checkpoint; the same command goes on.
#
#   bash examples/launch/one_node.sh examples/train_orz_qwen2.5_0.5b.sh [flags of the recipe]
#   RUN_DIR (default runs/RECIPE), RESTARTS (3), RESUME=0, GPUS, and the recipe's own  by environment
#   DRY_RUN=1  print the commands and stop;  DOCTOR=0  do not look at the machine first
set -euo pipefail
# shellcheck source=../lib/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/launch.sh"

use "${1:-}"
shift
export NODES=1 GPUS=${GPUS:-$(count_gpus)}
[ "$GPUS" != 0 ] || unset GPUS # a CPU recipe needs none, another one keeps its own number
examine
exec bash "$recipe" "${resuming[@]}" "$@"
