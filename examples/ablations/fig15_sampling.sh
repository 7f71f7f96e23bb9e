#!/usr/bin/env bash
# Fig. 15: temperature 0.6, 1.0 and 1.2, and 0.6 with top-p 0.95, on Qwen2.5-Math-7B and MATH.
#
# Reproduces: Fig. 15 (App. A), 140 steps. Temperature 1.0 rises most smoothly and ends highest.
#   ARM=T1.0 (default), T0.6, T1.2 or T0.6_p0.95
# The revisions of the paper from 2025-02-21 on (the release's ORZ_paper.pdf) say that this figure is another setting
# than the main one, and this follows them: Qwen2.5-Math-7B, MATH's training set, 1024 prompts x 8 responses, at most 8
# mini-batches for policy and critic. That model reads 4096 tokens.
# Hardware: as train_orz_qwen2.5_7b.sh. Hours: none are published. Not run by us.
#
#   ARM=T0.6 DATA=math_train.jsonl bash examples/ablations/fig15_sampling.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="T1.0 T0.6 T1.2 T0.6_p0.95"
ARM=${ARM:-T1.0}
: "${DATA:?name the training rows of MATH: DATA=math_train.jsonl}"
export MODEL=${MODEL:-Qwen/Qwen2.5-Math-7B}

case $ARM in
   T1.0 | T0.6 | T1.2) arm=(--rollout.temperature "${ARM#T}") ;;
   T0.6_p0.95) arm=(--rollout.temperature 0.6 --rollout.top_p 0.95) ;;
   *) unknown_arm ;;
esac
setting=(
   --data.max_len 4096
   --rollout.batch_size 1024
   --rollout.n_samples_per_prompt 8
   --orz.policy_updates 8
   --orz.critic_updates 8
   --train.num_episodes 20
)
run_into "fig15-$ARM"
export RUN_DIR
exec bash examples/train_orz_qwen2.5_7b.sh "${setting[@]}" "${arm[@]}" "$@"
