#!/usr/bin/env bash
# Fig. 9: no KL against a KL loss and a KL penalty in the reward, on the 7B recipe.
#
# Reproduces: Fig. 9 (Sec. 3.3, 7B), 500 steps. Without KL the benchmarks and the length rise most.
#   ARM=none        the paper's (default): no reference model is loaded
#   ARM=kl_loss     a term in the policy loss, estimator k3, the one of the release (orz_7b_ppo.py:157-159)
#   ARM=kl_penalty  reward shaping: minus the coefficient times the log-ratio at each token
# KL_COEF: the figure's coefficients are not published; 0.05 is the only one in the paper (legend of Fig. 14).
# Hardware: as train_orz_qwen2.5_7b.sh, and the reference model's forward on top. Hours: none are published.
# Not run by us.
#
#   ARM=kl_loss DATA=orz_57k.json bash examples/ablations/fig09_kl.sh [more flags]
#   KL_COEF, MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="none kl_loss kl_penalty"
ARM=${ARM:-none}
KL_COEF=${KL_COEF:-0.05}

case $ARM in
   none) arm=(--algo.kl.init_coef 0) ;;
   kl_loss) arm=(--algo.kl.init_coef "$KL_COEF" --algo.kl.use_loss --algo.kl.estimator k3) ;;
   kl_penalty) arm=(--algo.kl.init_coef "$KL_COEF" --algo.kl.estimator k1) ;;
   *) unknown_arm ;;
esac
run_into "fig09-$ARM"
export RUN_DIR
# 2 x 445 steps hold the figure's 500
exec bash examples/train_orz_qwen2.5_7b.sh "${arm[@]}" --train.num_episodes 2 "$@"
