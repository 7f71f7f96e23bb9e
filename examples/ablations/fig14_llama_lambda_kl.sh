#!/usr/bin/env bash
# Fig. 14: GAE lambda and a KL loss, together, on Llama-3.1-Instruct after SFT on STILL-2's data.
#
# Reproduces: Fig. 14 (App. A), 140 steps. Lambda 1.0 without KL is the steadiest. The arms are those of its legend.
#   ARM=1.0_kl0 (default), 1.0_kl0.05, 0.998_kl0 or 0.998_kl0.05
# MODEL: the authors have not published theirs. Make one by SFT of Llama-3.1-8B-Instruct on the STILL-2 data
# (arXiv 2412.09413), for example as examples/distill_reasoner.sh does it. The rest is the 7B recipe, since the paper
# names no other settings for this figure.
# Hardware: as train_orz_qwen2.5_7b.sh. Hours: none are published. Not run by us.
#
#   MODEL=llama-sft ARM=0.998_kl0.05 bash examples/ablations/fig14_llama_lambda_kl.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="1.0_kl0 1.0_kl0.05 0.998_kl0 0.998_kl0.05"
ARM=${ARM:-1.0_kl0}
: "${MODEL:?name a Llama-3.1-Instruct after SFT on STILL-2: MODEL=DIR}"

case $ARM in
   1.0_kl0 | 0.998_kl0) arm=(--algo.kl.init_coef 0) ;;
   1.0_kl0.05 | 0.998_kl0.05) arm=(--algo.kl.init_coef 0.05 --algo.kl.use_loss --algo.kl.estimator k3) ;;
   *) unknown_arm ;;
esac
run_into "fig14-$ARM"
export RUN_DIR
exec bash examples/train_orz_qwen2.5_7b.sh "${arm[@]}" --algo.advantage.lambd "${ARM%_kl*}" --train.num_episodes 1 "$@"
