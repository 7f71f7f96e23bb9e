#!/usr/bin/env bash
# ORZ on a distilled reasoner: PPO with the paper's settings on DeepSeek-R1-Distill-Qwen-14B.
#
# Reproduces: ORZ-R1-Distill-Qwen-14B (the release's README, 2025-06-03; the paper announces it in Sec. 3).
# Hardware: not published; 8 nodes x 8 GPUs of 80 GB here. Set NODES and GPUS.
# Expected: AIME 2024 75.2 (from 69.7), AIME 2025 60.0 (49.1), MATH500 95.6 (93.9), GPQA Diamond 60.4 (59.1). Steps,
# hours, data and lengths: none are published. Not run by us.
# Ours, for want of a source: the 57k data; ORZ's template and not the model's own, since the reward looks for the
# <answer> that it asks for; responses up to 16k tokens, since the model starts with long ones.
#
#   DATA=orz_57k.json bash examples/train_orz_r1_distill_14b.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

colocated "${NODES:-8}" "${GPUS:-8}" 2
run_into orz-r1-distill-14b
model=(
   --actor.model_name_or_path "${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Qwen-14B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
)
long=(
   --data.max_len 18432
   --train.max_tokens_per_gpu 18432       # a micro-batch holds at least one sequence
   --rollout.max_tokens_per_gpu 36864
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${long[@]}" "${output[@]}" "$@"
