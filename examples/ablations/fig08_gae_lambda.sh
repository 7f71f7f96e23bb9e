#!/usr/bin/env bash
# Fig. 8: GAE lambda 1.0 against 0.95, on the 7B recipe.
#
# Reproduces: Fig. 8 (Sec. 3.3), 500 steps. 1.0 is steadier and better; the reward ends at about 0.8.
#   ARM=1.0 (the paper's, default) or ARM=0.95
# Hardware: as train_orz_qwen2.5_7b.sh; the paper does not name the model of this figure. Hours: none are published.
# Not run by us.
#
#   ARM=0.95 DATA=orz_57k.json bash examples/ablations/fig08_gae_lambda.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="1.0 0.95"
ARM=${ARM:-1.0}

case $ARM in
   1.0 | 0.95) arm=(--algo.advantage.lambd "$ARM") ;;
   *) unknown_arm ;;
esac
run_into "fig08-lambda-$ARM"
export RUN_DIR
# 2 x 445 steps hold the figure's 500
exec bash examples/train_orz_qwen2.5_7b.sh "${arm[@]}" --train.num_episodes 2 "$@"
