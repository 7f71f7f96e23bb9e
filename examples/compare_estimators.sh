#!/usr/bin/env bash
# PPO against the estimators without a critic, all else equal: GRPO and REINFORCE++-baseline on the 7B recipe.
#
# Reproduces: no figure. The paper takes PPO "unlike GRPO" (Sec. 2.1.3) and shows no comparison; the release has a GRPO
# script, orz_7b_grpo.py, whose settings are these.
#   ARM=ppo                 the paper's (default)
#   ARM=grpo                a prompt's rewards minus their mean, over their standard deviation
#   ARM=reinforce_baseline  REINFORCE++-baseline: minus the prompt's mean, then normalised over the batch. This is also
#                           what the release's GRPO computes: its division is by True (orz_7b_ppo.py:264), and it
#                           normalises over the batch afterwards (orz_7b_grpo.py:84)
# Hardware: as train_orz_qwen2.5_7b.sh. Expected: nothing is published. Not run by us.
#
#   ARM=grpo DATA=orz_57k.json bash examples/compare_estimators.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"
ARMS="ppo grpo reinforce_baseline"
ARM=${ARM:-ppo}

case $ARM in
   ppo) arm=(--algo.advantage.estimator gae) ;;
   grpo) arm=(--algo.advantage.estimator group_norm) ;;
   reinforce_baseline) arm=(--algo.advantage.estimator reinforce_baseline) ;;
   *) unknown_arm ;;
esac
run_into "estimator-$ARM"
export RUN_DIR
exec bash examples/train_orz_qwen2.5_7b.sh "${arm[@]}" "$@"
