#!/usr/bin/env bash
# ORZ PPO on three of reasoning-gym's tasks, on a CPU: sums, greatest common divisors and counting legs.
#
# What it does: curates the tasks' questions (examples/curate_reasoning_gym.yaml); a supervised warm-up of the tiny
# base model on the held-out half, with bare answers in the format, since it knows none of these tasks; then ORZ steps
# on the other half, as the pipeline wrote it. It shows that curated data train with no further conversion, not that a
# model this small reasons.
# Hardware: 2 CPU cores, 6 GiB of memory. Time: minutes after set-up.
#
#   bash examples/train_orz_reasoning_gym_cpu.sh [more flags of python -m openrlhf_orz.cli.train_ppo_ray]
#   RUN_DIR=...          where the run goes (default runs/reasoning-gym-TIME)
#   SFT_ROWS, STEPS      size of the warm-up and of the run;  DRY_RUN=1  print the commands and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

RUN_DIR=${RUN_DIR:-runs/reasoning-gym-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
DATA=$RUN_DIR/curated
WARM=$RUN_DIR/warm_start
SFT_ROWS=${SFT_ROWS:-600}
STEPS=${STEPS:-10}
PROMPTS=16
export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

sft=(
   --model.model_name_or_path examples/tiny_base
   --data.dataset "$RUN_DIR/data/sft.jsonl"
   --data.input_key input
   --data.output_key output
   --data.input_template ""               # the rows hold the rendered prompt
   --data.max_len 256
   --train.batch_size 16
   --train.micro_batch_size 16
   --train.max_epochs 4
   --adam.lr 1e-3
   --ds.attn_implementation orz_packed
   --ds.packing_samples
   --ds.param_dtype fp32
   --ds.zero_stage 2
   --ckpt.disable_ds
   --ckpt.output_dir "$WARM"
)
model=(
   --actor.model_name_or_path "$WARM"
   --data.max_len 256
   --train.max_tokens_per_gpu 8192
)
data=(
   --data.prompt_dataset "$DATA/kept/train.jsonl"
   --data.max_samples $((STEPS * PROMPTS))
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

setup cpu
run "$python" -m openrlhf_orz.cli.curate --config examples/curate_reasoning_gym.yaml --output "$DATA" --set heldout=0.5
run "$python" -m openrlhf_orz.cli.warm_start bare --data "$DATA/kept/test.jsonl" --output "$RUN_DIR/data" \
   --sft_rows "$SFT_ROWS"
log "$RUN_DIR/warm_start.log" "${one_process[@]}" openrlhf.cli.train_sft "${sft[@]}"
train "${model[@]}" "${data[@]}" "${rollout[@]}" "${optimizer[@]}" --ckpt.output_dir "$RUN_DIR" "$@"
