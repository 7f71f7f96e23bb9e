#!/usr/bin/env bash
# Fig. 13: prompts x rollouts x update steps, strictly on-policy against off-policy, on the 7B recipe.
#
# Reproduces: Fig. 13 (App. A), 140 steps. "Prompt 128x64 U.S. 1" is steadier and ends better.
#   ARM=128x64x1   the paper's (default): prompts x responses x policy steps of a rollout
#   ARM=1024x64x8  the other curve of the legend; any other PxRxU works, too
# The critic's steps in the second curve are not published: 12 a rollout, as ever.
# Hardware: as train_orz_qwen2.5_7b.sh; the paper does not name the model of this figure. Hours: none are published.
# Not run by us.
#
#   ARM=1024x64x8 DATA=orz_57k.json bash examples/ablations/fig13_update_steps.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="128x64x1 1024x64x8"
ARM=${ARM:-128x64x1}

[[ $ARM =~ ^([0-9]+)x([0-9]+)x([0-9]+)$ ]] || unknown_arm
arm=(
   --rollout.batch_size "${BASH_REMATCH[1]}"
   --rollout.n_samples_per_prompt "${BASH_REMATCH[2]}"
   --orz.policy_updates "${BASH_REMATCH[3]}"
)
run_into "fig13-$ARM"
export RUN_DIR
exec bash examples/train_orz_qwen2.5_7b.sh "${arm[@]}" --train.num_episodes 3 "$@"
