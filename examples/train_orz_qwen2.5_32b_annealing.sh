#!/usr/bin/env bash
# The second stage of Open-Reasoner-Zero 32B: 100 steps on the hard questions, with a falling learning rate.
#
# Reproduces: the annealing of the paper's revision of 2025-03-31 (Sec. 2.1.1 and 3.1, in the release's ORZ_paper.pdf):
# the 13k questions that the first stage got right in fewer than 4 of 64 answers, 100 steps, the learning rate falling
# to 3e-7. It says linearly; there is no linear schedule with a lower end here, so this is a cosine from 1e-6 to 3e-7,
# nowhere more than 7.4e-8 from that line. The critic's rate stays, since the text names one rate only.
# Hardware: as the first stage: 16 nodes x 8 GPUs, with its two layouts (ARM).
# Expected: AIME 2024 from about 41 to about 48 (the release's README, 2025-03-31). Hours: none are published.
# Not run by us. Your own hard set: docs/data.md, "Pass rates".
#
#   MODEL=runs/orz-32b-.../hf CRITIC=runs/orz-32b-.../hf_critic \
#      DATA=orz_13k_hard.json bash examples/train_orz_qwen2.5_32b_annealing.sh [more flags]
#   ARM, MODEL, CRITIC, DATA, RUN_DIR  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"
ARMS="split colocated"
export ARM=${ARM:-split}
export MODEL=${MODEL:?name the policy of the first stage: MODEL=RUN/hf}
export DATA=${DATA:-Open-Reasoner-Zero/orz_math_13k_collection_hard}
STEPS=100

annealing=(
   --critic.model_name_or_path "${CRITIC:?name the critic of the first stage: CRITIC=RUN/hf_critic}"
   --data.max_samples $((STEPS * 128))
   --train.num_episodes 1
   --orz.warmup_steps 0
   --actor.lr_scheduler cosine_with_min_lr
   --actor.min_lr_ratio 0.3
)
run_into "orz-32b-annealing-$ARM"
export RUN_DIR
exec bash examples/train_orz_qwen2.5_32b.sh "${annealing[@]}" "$@"
