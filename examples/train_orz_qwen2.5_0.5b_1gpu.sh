#!/usr/bin/env bash
# Open-Reasoner-Zero 0.5B on one GPU: PPO on Qwen2.5-0.5B with the paper's settings.
#
# Reproduces: the 0.5B curves of Fig. 2 in the paper's revision of 2025-03-31, slowly.
# Hardware: 1 GPU of 80 GB; the release's orz_0p5b_ppo_1gpu.py names one A800 or H800 (README).
# Expected: AIME 2024 1.0, AIME 2025 0.2, MATH500 31.0, GPQA Diamond 12.1, means of 16 (Table 4 of that revision); its
# Fig. 2 ends after some 220 steps. Hours: none are published. Not run by us.
#
#   DATA=orz_57k.json bash examples/train_orz_qwen2.5_0.5b_1gpu.sh [more flags]
#   MODEL, DATA, RUN_DIR  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

small 1 1
run_into orz-0.5b-1gpu
model=(
   --actor.model_name_or_path "${MODEL:-Qwen/Qwen2.5-0.5B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${output[@]}" "$@"
