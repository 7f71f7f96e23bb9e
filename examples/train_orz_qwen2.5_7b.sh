#!/usr/bin/env bash
# Open-Reasoner-Zero 7B: PPO on the base model Qwen2.5-7B with the paper's settings (arXiv 2503.24290, Sec. 3.1).
#
# Reproduces: Fig. 2 and 5 (7B). Every model shares the GPUs with vLLM; sleep on both sides.
# Hardware: the paper does not say; the release's 7B recipe is for 4 nodes x 8 GPUs of 80 GB. Set NODES and GPUS.
# Not run by us at this size: no such cluster was at hand. The same code runs in the CPU tests.
#
#   ray start --head                                  # and on the other nodes: ray start --address HEAD:6379
#   DATA=orz_57k.json bash examples/train_orz_qwen2.5_7b.sh [more flags]
#   MODEL, DATA, RUN_DIR, NODES, GPUS  by environment;  DRY_RUN=1  print the command and stop
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL=${MODEL:-Qwen/Qwen2.5-7B}
DATA=${DATA:-Open-Reasoner-Zero/orz_math_57k_collection}
RUN_DIR=${RUN_DIR:-runs/orz-7b-$(date +%Y%m%d-%H%M%S)}
NODES=${NODES:-4}
GPUS=${GPUS:-8}
PYTHON=${ORZ_VENV:-.venv}/bin/python

model=(
   --actor.model_name_or_path "$MODEL"
   --data.prompt_dataset "$DATA"
   --data.max_len 10240                   # not stated; the release: prompts up to 2048, responses up to 8000
   --orz.max_prompt_len 2048
)
# 128 prompts x 64 responses, temperature and top-p 1, one policy step, twelve critic steps: all defaults, shown here.
algorithm=(
   --rollout.batch_size 128
   --rollout.n_samples_per_prompt 64
   --rollout.temperature 1.0
   --rollout.top_p 1.0
   --orz.policy_updates 1
   --orz.critic_updates 12
   --algo.advantage.estimator gae
   --algo.advantage.gamma 1.0
   --algo.advantage.lambd 1.0
   --algo.kl.init_coef 0
   --orz.value_head_init released         # the paper's text is garbled: see the flag's help
   --train.num_episodes 20
)
optimizer=(
   --actor.adam.lr 1e-6
   --critic.adam.lr 5e-6
   --orz.warmup_steps 50
   --actor.gradient_checkpointing_enable
)
placement=(
   --orz.device cuda
   --train.colocate_all
   --actor.num_nodes "$NODES" --actor.num_gpus_per_node "$GPUS"
   --critic.num_nodes "$NODES" --critic.num_gpus_per_node "$GPUS"
   --vllm.num_engines $((NODES * GPUS))
   --vllm.tensor_parallel_size 1
   --vllm.gpu_memory_utilization 0.5
   --vllm.enable_sleep
   --ds.enable_sleep
   --ds.zero_stage 3
   --ds.packing_samples
   --train.dynamic_batch_enable
   --train.max_tokens_per_gpu 16384
   --rollout.max_tokens_per_gpu 32768
)
output=(
   --ckpt.output_dir "$RUN_DIR"
   --ckpt.save_steps 50
)
command=("$PYTHON" -m openrlhf_orz.cli.train_ppo_ray
   "${model[@]}" "${algorithm[@]}" "${optimizer[@]}" "${placement[@]}" "${output[@]}" "$@")

if [ -n "${DRY_RUN:-}" ]; then
   printf '%q ' "${command[@]}"
   echo
   exit 0
fi
bash tools/setup.sh gpu
exec "${command[@]}"
