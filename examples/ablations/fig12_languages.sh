#!/usr/bin/env bash
# Fig. 12: English questions alone against English and Chinese ones, on the 7B recipe.
#
# Reproduces: Fig. 12 (App. A), 100 steps. English alone is steadier and ends better.
#   ARM=english  (default) the pool's English questions
#   ARM=both     the pool and the Chinese questions of DATA_CN, which the authors have not published
# Both arms go through the same curation (openrlhf_orz.cli.curate); they differ in the languages that it keeps.
# Hardware: as train_orz_qwen2.5_7b.sh; the paper does not name the model of this figure. Hours: none are published.
# Not run by us.
#
#   ARM=both DATA=orz_57k.json DATA_CN=chinese.jsonl bash examples/ablations/fig12_languages.sh [more flags]
#   MODEL, DATA, DATA_CN, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the commands and stop
set -euo pipefail
# shellcheck source=../lib/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib/recipe.sh"
ARMS="english both"
ARM=${ARM:-english}
POOL=${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}

case $ARM in
   english) pool=(--input "$POOL" --english-only) ;;
   both)
      pool=(--input "$POOL" --input "${DATA_CN:?name rows with Chinese questions: DATA_CN=chinese.jsonl}"
         --set 'language.keep=[english,chinese]'
      )
      ;;
   *) unknown_arm ;;
esac
run_into "fig12-$ARM"
export RUN_DIR DATA="$RUN_DIR/curated/kept/train.jsonl"

setup gpu
run "$python" -m openrlhf_orz.cli.curate "${pool[@]}" --output "$RUN_DIR/curated"
exec bash examples/train_orz_qwen2.5_7b.sh --train.num_episodes 1 "$@"
