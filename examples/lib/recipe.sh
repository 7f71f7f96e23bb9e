# shellcheck shell=bash disable=SC2034
# What the recipes share: where they run, the paper's settings, the placement on GPUs, DRY_RUN. Sourced, never run.
#
# A recipe adds its own groups and calls `train`, which passes each flag once: a flag that comes again, from an
# ablation or from your command line, takes the place of the first. Paths among the variables below are meant from
# where the recipe was called; all others from the project's folder.

for name in MODEL CRITIC TEACHER STUDENT DATA DATA_CN WARM_MODEL; do
   if [ -n "${!name:-}" ] && [ -e "${!name}" ]; then printf -v "$name" %s "$(realpath -s "${!name}")"; fi
done
unset CDPATH # cd would look there, and print where it went
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
# what keeps to the CPU has an environment of its own beside one for GPUs
if [[ ${BASH_SOURCE[1]:-} == *_cpu.sh && -z ${ORZ_VENV:-} ]] && grep -qsx gpu .venv/.orz/mode; then
   export ORZ_VENV=$PWD/.venv-cpu
fi
python=${ORZ_VENV:-.venv}/bin/python
export PATH="$(realpath -sm "${ORZ_VENV:-.venv}")/bin:$PATH" # ninja, for what DeepSpeed and vLLM compile

# ---- settings

# arXiv 2503.24290, Sec. 3.1. They are the command's defaults, too; docs/fidelity.md has the released code's side.
paper=(
   --rollout.batch_size 128               # prompts of a generation step
   --rollout.n_samples_per_prompt 64
   --rollout.temperature 1.0
   --rollout.top_p 1.0
   --orz.policy_updates 1                 # strictly on-policy
   --orz.critic_updates 12
   --algo.advantage.estimator gae
   --algo.advantage.gamma 1.0
   --algo.advantage.lambd 1.0
   --algo.kl.init_coef 0                  # no reference model at all
   --actor.adam.lr 1e-6
   --critic.adam.lr 5e-6
   --orz.warmup_steps 50
   --orz.value_head_init released         # the paper's text is garbled: see the flag's help
)
# Not stated in the paper. The release: prompts up to 2048 tokens, responses up to 8000, the two together up to 8192
# (orz_7b_ppo.py:140,166-167), 20 episodes (:145).
lengths=(
   --data.max_len 8192
   --orz.max_prompt_len 2048
   --train.num_episodes 20
)

# colocated NODES GPUS [TENSOR_PARALLEL]: policy, critic and vLLM share all GPUs; each sleeps while another works. The
# release's layout for 0.5B to 7B (colocate_all). Shares of memory and tokens of a micro-batch are ours.
colocated() {
   local tensor_parallel=${3:-1}
   placement=(
      --orz.device cuda
      --train.colocate_all
      --actor.num_nodes "$1" --actor.num_gpus_per_node "$2"
      --critic.num_nodes "$1" --critic.num_gpus_per_node "$2"
      --ref.num_nodes "$1" --ref.num_gpus_per_node "$2"    # loaded only where an ablation asks for KL
      --vllm.num_engines $(($1 * $2 / tensor_parallel))
      --vllm.tensor_parallel_size "$tensor_parallel"
      --vllm.gpu_memory_utilization 0.75     # the trainers sleep: the plan of each recipe has 8 % to spare
      --vllm.enable_sleep
      --ds.enable_sleep
      --ds.zero_stage 3
      --ds.grad_accum_dtype fp32
      --ds.packing_samples
      --actor.gradient_checkpointing_enable
      --train.dynamic_batch_enable
      --train.max_tokens_per_gpu 16384
      --rollout.max_tokens_per_gpu 32768
   )
}

# small NODES GPUS: the same for a model of 0.5B, whose two trainers fit beside each other in 80 GB: no ZeRO-3, nothing
# computed twice, and no trainer's states copied to the host.
small() {
   colocated "$1" "$2"
   local word
   local -a kept=()
   for word in "${placement[@]}"; do
      case $word in
         --ds.enable_sleep | --actor.gradient_checkpointing_enable) ;;
         *) kept+=("$word") ;;
      esac
   done
   placement=("${kept[@]}" --ds.zero_stage 1 --vllm.gpu_memory_utilization 0.6)
}

# run_into NAME: where the run goes. A run that resumes needs the same RUN_DIR, and --ckpt.load_enable.
run_into() {
   RUN_DIR=${RUN_DIR:-runs/$1-$(date +%Y%m%d-%H%M%S)-$(mktemp -u XXXXXX)}
   output=(--ckpt.output_dir "$RUN_DIR" --ckpt.save_steps 50)
}

# ---- running

show() { printf '%q ' "$@"; echo; }

# as_child COMMAND...: run it. A signal to the recipe goes on, once, to all that it has started, and the recipe ends
# after it: bash would end at once, if the signal is for it alone, and leave the command. SIGKILL cannot be handed on.
as_child() {
   local child name status=0 stopped=0
   set -m # a process group of its own: what a scheduler sends to the recipe's group would come twice
   "$@" &
   child=$!
   set +m
   for name in HUP INT QUIT TERM; do
      # shellcheck disable=SC2064 # the name of now
      trap "stopped=\$((128 + \$(kill -l $name))); kill -$name -- -$child 2>/dev/null || true" $name
   done
   while status=0 && { wait "$child" || status=$?; } && [ $status -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
   trap - HUP INT QUIT TERM
   [ $status -ne 0 ] || status=$stopped # it may have come when all was done; what follows is not begun
   return $status
}

# run COMMAND...: run it; under DRY_RUN=1 print it.
run() { if [ -n "${DRY_RUN:-}" ]; then show "$@"; else as_child "$@"; fi; }

# say WORDS...: a line on the screen, but not among the commands of a dry run.
say() { [ -n "${DRY_RUN:-}" ] || echo "[recipe] $*"; }

# log FILE COMMAND...: run it with its output in FILE.
log() {
   local file=$1
   shift
   say "log: $file"
   if [ -n "${DRY_RUN:-}" ]; then show "$@"; else as_child "$@" >"$file"; fi
}

# setup [cpu|gpu]: the environment; nothing to do where it is ready.
setup() { [ -n "${DRY_RUN:-}" ] || bash tools/setup.sh "$@"; }

unknown_arm() {
   echo "$(basename "$0"): ARM=$ARM is none of: $ARMS" >&2
   exit 2
}

# resolve FLAGS...: sets `resolved`, each flag once with the values that it was given last, in the place where it stood
# first.
resolve() {
   local word key=
   local -a order=()
   local -A values=()
   for word in "$@"; do
      if [[ $word == --* ]]; then
         key=${word%%=*}
         [ -n "${values[$key]+there}" ] || order+=("$key")
         values[$key]=$(printf '%q' "$word")
      elif [ -z "$key" ]; then
         echo "$(basename "$0"): $word belongs to no flag" >&2
         exit 2
      else
         values[$key]+=" $(printf '%q' "$word")"
      fi
   done
   resolved=()
   for key in ${order[@]+"${order[@]}"}; do
      local -a group="(${values[$key]})" # quoted by %q above
      resolved+=("${group[@]}")
   done
}

# train FLAGS...: the training; the recipe ends with it, so that signals reach the training itself.
train() {
   resolve "$@"
   local -a command=("$python" -m openrlhf_orz.cli.train_ppo_ray "${resolved[@]}")
   if [ -n "${DRY_RUN:-}" ]; then show "${command[@]}"; else exec "${command[@]}"; fi
}

# One process by itself, for OpenRLHF's SFT trainer; it listens nowhere. DeepSpeed wants an address, which nobody uses.
one_process=(env RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 GLOO_SOCKET_IFNAME=lo MASTER_ADDR=127.0.0.1
   "MASTER_PORT=${MASTER_PORT:-29500}" "$python" examples/lib/one_process.py
)
