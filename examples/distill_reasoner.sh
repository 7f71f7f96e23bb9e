#!/usr/bin/env bash
# Distillation: a trained reasoner's right answers teach a smaller model, by SFT with OpenRLHF's trainer.
#
# Reproduces: what Sec. 3 announces; the paper gives neither settings nor numbers for it, so all settings are ours.
# Steps: curate DATA into gradable questions; N answers of TEACHER to each, in the training's template and with its
# grader; keep what is right, ended by itself and is no duplicate, at most PER_QUESTION to a question; SFT of STUDENT.
# Hardware: 8 GPUs of 80 GB for the default models. DEVICE=cpu for tiny ones: run by us with examples/tiny_base, see
# docs/recipes.md. Hours and scores of the default models: none are published, not run by us.
#
#   DATA=orz_57k.json bash examples/distill_reasoner.sh [more flags of python -m openrlhf.cli.train_sft]
#   TEACHER, STUDENT, DATA, N, PER_QUESTION, MAX_LEN, TENSOR_PARALLEL, GPUS, DEVICE (cuda or cpu), RUN_DIR
#                              by environment
#   CURATE_CONFIG=FILE.yaml  takes the place of DATA (docs/data.md);  DRY_RUN=1  print the commands and stop
# The same RUN_DIR goes on: answers that are there are not generated again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"

TEACHER=${TEACHER:-Open-Reasoner-Zero/Open-Reasoner-Zero-32B}
STUDENT=${STUDENT:-Qwen/Qwen2.5-1.5B}
DATA=${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}
N=${N:-4}
PER_QUESTION=${PER_QUESTION:-2}
MAX_LEN=${MAX_LEN:-8192}
GPUS=${GPUS:-8}
DEVICE=${DEVICE:-cuda}
RUN_DIR=${RUN_DIR:-runs/distill-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
answers=$RUN_DIR/teacher
pool=(--input "$DATA")
if [ -n "${CURATE_CONFIG:-}" ]; then pool=(--config "$CURATE_CONFIG"); fi

generate=(
   --model "$TEACHER"
   --data "questions=$RUN_DIR/curated/kept/train.jsonl"
   --n "$N"
   --max_len "$MAX_LEN"                   # a response may take what its prompt leaves
   --device "$DEVICE"
   --out "$answers"
)
sft=(
   --model.model_name_or_path "$STUDENT"
   --data.dataset "$RUN_DIR/sft.jsonl"
   --data.input_key input
   --data.output_key output
   --data.input_template ""               # the rows hold the rendered prompt
   --data.max_len $((MAX_LEN + 8))        # the end token comes on top
   --ckpt.disable_ds
   --ckpt.output_dir "$RUN_DIR/hf"
)
case $DEVICE in
   cuda)
      tensor_parallel=${TENSOR_PARALLEL:-4}
      generate+=(--tensor_parallel "$tensor_parallel" --engines $((GPUS / tensor_parallel)))
      sft+=(
         --train.batch_size 128
         --train.micro_batch_size 1
         --train.max_epochs 2
         --adam.lr 1e-5
         --ds.zero_stage 3
         --ds.packing_samples
         --model.gradient_checkpointing_enable
      )
      processes=("$python" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" -m)
      ;;
   cpu)
      export DS_ACCELERATOR=cpu
      export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
      sft+=(
         --train.batch_size 16
         --train.micro_batch_size 16
         --train.max_epochs 2
         --adam.lr 1e-3
         --ds.zero_stage 2
         --ds.attn_implementation orz_packed
         --ds.packing_samples
         --ds.param_dtype fp32
      )
      processes=("${one_process[@]}")
      ;;
   *)
      echo "$(basename "$0"): DEVICE=$DEVICE is neither cuda nor cpu" >&2
      exit 2
      ;;
esac
resolve "${sft[@]}" "$@"

if [ "$DEVICE" = cpu ]; then setup; else setup gpu; fi
run "$python" -m openrlhf_orz.cli.curate "${pool[@]}" --output "$RUN_DIR/curated"
run "$python" -m openrlhf_orz.cli.evaluate "${generate[@]}"
run "$python" -m openrlhf_orz.cli.distill --responses "$answers/responses.jsonl" --output "$RUN_DIR/sft.jsonl" \
   --per_question "$PER_QUESTION"
log "$RUN_DIR/sft.log" "${processes[@]}" openrlhf.cli.train_sft "${resolved[@]}"
say "the student is in $RUN_DIR/hf"
