#!/usr/bin/env bash
# Runs a recipe on this machine's GPUs in a container of docker/Dockerfile; builds the image if it is not there.
#
# Hardware: one machine with NVIDIA GPUs, their driver and the NVIDIA container toolkit; 40 GB of disk for the image.
# Publishes no port. runs/ here is the container's; MODEL and DATA, if they are files, are mounted to be read.
# The image has not been built by us: no Docker was at hand (docs/recipes.md).
#
#   bash examples/launch/docker.sh examples/train_orz_qwen2.5_0.5b.sh [flags of the recipe]
#   IMAGE (openrlhf-orz:0.11.2), RUN_DIR (below runs/), RESTARTS, RESUME=0, GPUS, HF_TOKEN, and the recipe's own
#   by environment;  DRY_RUN=1  print the commands and stop
set -euo pipefail
# shellcheck source=../lib/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/launch.sh"

use "${1:-}"
shift
root=$(pwd -P) recipe=$(realpath "$recipe") # also where a link leads here
IMAGE=${IMAGE:-openrlhf-orz:0.11.2}
run() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

[[ $recipe == "$root"/* ]] || die "$recipe lies outside of the project: the image holds only what is in it"
[[ $RUN_DIR == runs/* ]] || die "RUN_DIR=$RUN_DIR: name a folder below runs/, which the container shares"
container=(docker run --rm --init --gpus all
   --shm-size 16g                         # ranks and engines hand tensors on through it
   --stop-timeout 300                     # docker stop: SIGTERM, then time to write a checkpoint
   --user "$(id -u):$(id -g)" --env HOME=/orz/runs --env USER=orz   # the image knows no name for this number
   --volume "$root/runs:/orz/runs"
)
for name in MODEL CRITIC DATA DATA_CN; do
   value=${!name:-}
   if [ -n "$value" ] && [ -e "$value" ]; then container+=(--volume "$value:$value:ro"); fi
done
for name in RUN_DIR RESTARTS RESUME NODES GPUS MODEL CRITIC DATA DATA_CN ARM KL_COEF MAX_LEN HF_TOKEN WANDB_API_KEY; do
   [ -z "${!name:-}" ] || container+=(--env "$name") # by name: a value does not show in `ps`
done
export RUN_DIR
if [ -n "${DRY_RUN:-}" ] || ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
   run docker build --file docker/Dockerfile --tag "$IMAGE" .
fi
[ -n "${DRY_RUN:-}" ] || mkdir -p runs
run "${container[@]}" "$IMAGE" bash examples/launch/one_node.sh "${recipe#"$root"/}" "$@"
