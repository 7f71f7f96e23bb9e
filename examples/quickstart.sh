#!/usr/bin/env bash
# The quickstart: sets up if need be, then trains a tiny Qwen2 base model by ORZ PPO on a CPU.
#
# What it shows: the paper's first figure in small. The base answers additions in two styles, a short guess that is
# mostly wrong and a longer worked solution that is mostly right; the 0/1 reward alone makes reward and response
# length rise together.
# Hardware: 2 CPU cores, 6 GiB of memory. Time: under 10 minutes after set-up.
#
#   bash examples/quickstart.sh [more flags of python -m openrlhf_orz.cli.train_ppo_ray]
#   RUN_DIR=...   where the run goes (default runs/quickstart-TIME)
#   DRY_RUN=1     print the commands and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

RUN_DIR=${RUN_DIR:-runs/quickstart-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
CURATED=$RUN_DIR/additions
STEPS=${STEPS:-70}
PROMPTS=16

model=(
   --actor.model_name_or_path examples/tiny_base
   --data.max_len 128
   --train.max_tokens_per_gpu 8192
)
data=(
   --data.prompt_dataset "$CURATED/kept/train.jsonl"
   --train.num_episodes 1
)
rollout=(
   --rollout.batch_size "$PROMPTS"
   --rollout.n_samples_per_prompt 8
   --rollout.max_new_tokens 48
)
# A network this small learns at rates far above the paper's, and without a warm-up of 50 steps.
optimizer=(
   --actor.adam.lr 2e-4
   --critic.adam.lr 1e-3
   --orz.warmup_steps 0
   --orz.critic_updates 12
)

setup
run "$python" -m openrlhf_orz.cli.curate --config examples/curate_arithmetic.yaml --output "$CURATED" \
   --set inputs.0.additions.rows=$((STEPS * PROMPTS))
train "${model[@]}" "${data[@]}" "${rollout[@]}" "${optimizer[@]}" --ckpt.output_dir "$RUN_DIR" "$@"
