#!/usr/bin/env bash
# Open-Reasoner-Zero 32B: PPO on Qwen2.5-32B with the paper's settings (arXiv 2503.24290, Sec. 3.1), on 128 GPUs.
#
# Reproduces: Fig. 1, 2, 6 and Table 2 (32B).
# Hardware: 16 nodes x 8 GPUs, as the release's orz_32b_ppo.py (lines 46-60). Two layouts:
#   ARM=split      32 GPUs for the policy, 32 for the critic, 16 engines on 4 GPUs each: the release's, and the
#                  default. Policy and critic train at the same time; nothing is moved between GPU and host memory
#   ARM=colocated  all share all 128 GPUs, 32 engines on 4 GPUs each; engines that die are started again
# Expected: AIME 2024 48.1, AIME 2025 36.0, MATH500 92.2, GPQA Diamond 55.5, means of 16 (Table 4 of the paper's
# revision of 2025-03-31, after 1100 steps and the annealing of train_orz_qwen2.5_32b_annealing.sh). Hours: none are
# published. Not run by us.
# Data: the paper and the release's script train on 57k; the revision's run was on 129k, which is
#   DATA=orz_57k.json,orz_72k.json
# Length: Fig. 2's means reach 10k tokens, which the release's limit of 8192 (orz_32b_ppo.py:115-116) cannot give, so
# the limit here is 16k for a response; MAX_LEN=8192 is the release's side.
#
#   bash examples/train_orz_qwen2.5_32b.sh [more flags]
#   ARM, MODEL, DATA, RUN_DIR, MAX_LEN  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/recipe.sh"
ARMS="split colocated"
ARM=${ARM:-split}
MAX_LEN=${MAX_LEN:-18432}

case $ARM in
   split)
      placement=(
         --orz.device cuda
         --actor.num_nodes 4 --actor.num_gpus_per_node 8
         --critic.num_nodes 4 --critic.num_gpus_per_node 8
         --vllm.num_engines 16
         --vllm.tensor_parallel_size 4
         --vllm.gpu_memory_utilization 0.9   # the release: 0.95
         --ds.zero_stage 3
         --ds.grad_accum_dtype fp32
         --ds.packing_samples
         --actor.gradient_checkpointing_enable
         --train.dynamic_batch_enable
      ) ;;
   colocated) colocated 16 8 4 ;;
   *) unknown_arm ;;
esac
run_into "orz-32b-$ARM"
model=(
   --actor.model_name_or_path "${MODEL:-Qwen/Qwen2.5-32B}"
   --data.prompt_dataset "${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}"
   --critic.save_value_network            # the annealing stage goes on with it
)
# a micro-batch holds at least one sequence
long=(
   --data.max_len "$MAX_LEN"
   --train.max_tokens_per_gpu $((MAX_LEN > 16384 ? MAX_LEN : 16384))
   --rollout.max_tokens_per_gpu $((MAX_LEN > 16384 ? 2 * MAX_LEN : 32768))
)

setup gpu
train "${model[@]}" "${lengths[@]}" "${paper[@]}" "${placement[@]}" "${long[@]}" "${output[@]}" "$@"
