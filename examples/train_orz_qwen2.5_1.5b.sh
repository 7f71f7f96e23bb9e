#!/usr/bin/env bash
# Open-Reasoner-Zero 1.5B: PPO on Qwen2.5-1.5B with the paper's settings.
#
# Reproduces: the 1.5B curves of Fig. 2 in the paper's revision of 2025-03-31.
# Hardware: 2 nodes x 8 GPUs, as the release's orz_1p5b_ppo.py (lines 5 and 43). Set NODES and GPUS.
# Expected: AIME 2024 3.5, AIME 2025 1.0, MATH500 58.0, GPQA Diamond 16.8, means of 16 (Table 4 of that revision); its
# Fig. 2 ends after some 290 steps. Hours: none are published. Not run by us.
#
#   DATA=orz_57k.json bash examples/train_orz_qwen2.5_1.5b.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
# Several nodes: docs/recipes.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

colocated "${NODES:-2}" "${GPUS:-8}"
run_into orz-1.5b
model=(
   --actor.model_name_or_path "${MODEL:-Qwen/Qwen2.5-1.5B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${output[@]}" "$@"
