# shellcheck shell=bash
# What the launchers share: which recipe, where its run goes, that it resumes. Sourced, never run.

say() { echo "[launch] $*" >&2; }
die() { echo "$(basename "$0"): $*" >&2; exit 2; }

unset CDPATH # cd would look there, and print where it went
# what DeepSpeed and vLLM compile needs ninja, also in Ray's workers, which have the environment of `ray start`
PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && realpath -sm "${ORZ_VENV:-.venv}")/bin:$PATH"
export PATH

# use RECIPE: checks it and sets `recipe`; then RUN_DIR, without a time in it, so that the same command goes on with
# the same run; then goes to the project's folder.
use() {
   [ -f "${1:-}" ] || die "no recipe ${1:-}: give one, such as examples/train_orz_qwen2.5_7b.sh"
   recipe=$(realpath -s "$1")
   local name
   for name in MODEL CRITIC DATA DATA_CN; do
      if [ -n "${!name:-}" ] && [ -e "${!name}" ]; then export "$name=$(realpath -s "${!name}")"; fi
   done
   cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
   name=$(basename "$recipe" .sh)${ARM:+-$ARM}
   export RUN_DIR=${RUN_DIR:-runs/$name${SLURM_JOB_ID:+-$SLURM_JOB_ID}}
   say "$recipe into $RUN_DIR; a checkpoint that is there is gone on with"
}

# What makes a run survive (docs/reliability.md). A first start finds no checkpoint and says so. RESUME=0 leaves it
# out, for recipes that are no training.
resuming=()
# shellcheck disable=SC2034
if [ "${RESUME:-1}" = 1 ]; then resuming=(--ckpt.load_enable --orz.max_restarts "${RESTARTS:-3}"); fi

# count_gpus: of this machine; GPUS says otherwise
count_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c . || true; }

# examine: what of this machine serves a run; ends where one cannot start. DOCTOR=0 leaves it out.
examine() {
   if [ "${DOCTOR:-1}" != 1 ] || [ -n "${DRY_RUN:-}" ]; then return; fi
   "${ORZ_VENV:-.venv}/bin/python" -m openrlhf_orz.cli.doctor --run_dir "${RUN_DIR:-runs}" >&2 ||
      die "this machine cannot run it: do what the lines above say, or set DOCTOR=0"
}
