#!/usr/bin/env bash
# Open-Reasoner-Zero 7B: PPO on the base model Qwen2.5-7B with the paper's settings (arXiv 2503.24290, Sec. 3.1).
#
# Reproduces: Fig. 2 and 5 (7B).
# Hardware: the paper does not say; the release's 7B script is for 32 GPUs (orz_7b_ppo.py:95; its README: 4 nodes). Set
# NODES and GPUS.
# Expected: AIME 2024 17.9, AIME 2025 15.6, MATH500 81.4, GPQA Diamond 36.6, means of 16 (Table 4 of the paper's
# revision of 2025-03-31); Fig. 2 there ends after some 730 steps. Hours: 5.5 days on 8 x 8 H800, says an author (the
# release's issue 1). Not run by us at this size: no such cluster was at hand.
#
#   DATA=orz_57k.json bash examples/train_orz_qwen2.5_7b.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
# Several nodes: docs/recipes.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

colocated "${NODES:-4}" "${GPUS:-8}"
run_into orz-7b
model=(
   --actor.model_name_or_path "${MODEL:-Qwen/Qwen2.5-7B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${output[@]}" "$@"
