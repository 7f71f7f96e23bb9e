#!/usr/bin/env bash
# Open-Reasoner-Zero 0.5B on one node: PPO on Qwen2.5-0.5B with the paper's settings.
#
# Reproduces: the 0.5B curves of Fig. 2 in the paper's revision of 2025-03-31.
# Hardware: 8 GPUs, as the release's orz_0p5b_ppo.py (line 32; its README: one A800 or H800 node). Set GPUS.
# Expected: AIME 2024 1.0, AIME 2025 0.2, MATH500 31.0, GPQA Diamond 12.1, means of 16 (Table 4 of that revision); its
# Fig. 2 ends after some 220 steps. Hours: none are published. Not run by us.
#
#   DATA=orz_57k.json bash examples/train_orz_qwen2.5_0.5b.sh [more flags]
#   MODEL, DATA, RUN_DIR, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

small 1 "${GPUS:-8}"
run_into orz-0.5b
model=(
   --actor.model_name_or_path "${MODEL:-Qwen/Qwen2.5-0.5B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${output[@]}" "$@"
