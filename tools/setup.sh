#!/usr/bin/env bash
# Set-up in one command: bash tools/setup.sh [auto|cpu|gpu]
#
# Makes .venv with the pinned stack, the patched OpenRLHF and this package. auto takes
# what an existing .venv has, else gpu where nvidia-smi answers, else cpu. Each stage
# leaves a stamp with the hash of what it was made from, so a rerun does only what is
# missing or changed.
#
# gpu needs a driver for CUDA 13, where there is one, and the compiler nvcc of CUDA 13,
# with which DeepSpeed's optimizer is built. It needs no flash-attn.
#
# Environment: PYTHON (interpreter), CXX (compiler), CUDA_HOME (where nvcc is),
# TORCH_CUDA_ARCH_LIST (GPUs to build for), ORZ_VENV (another place for .venv),
# ORZ_MIN_FREE_GB (disk space asked for), and pip's own variables.
set -euo pipefail

unset CDPATH # cd would look there, and print where it went
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${ORZ_VENV:-$ROOT/.venv}
STAMPS=$VENV/.orz
LOG=$STAMPS/setup.log
# setuptools 77.0.3, which vLLM's metadata names, cannot build torch extensions
# (BuildExtension.with_options fails); 80.9.0 can, and still has pkg_resources.
BOOTSTRAP="pip==26.3 setuptools==80.9.0 wheel==0.48.0"
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# What DeepSpeed would otherwise compile, for minutes, in the first run on CPU: the
# optimizer, and a collective that it loads with torch.distributed.
OPS="DS_BUILD_FUSED_ADAM=1 DS_BUILD_SHM_COMM=1"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
hash_of() { cat -- "$@" | sha256sum | cut -c1-16; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# ---- which mode

MODE=${1:-auto}
[ $# -le 1 ] && [[ $MODE =~ ^(auto|cpu|gpu)$ ]] || {
    echo "usage: bash tools/setup.sh [auto|cpu|gpu]" >&2
    exit 2
}
HAD=$(cat "$STAMPS/mode" 2>/dev/null || true)
if [ "$MODE" = auto ]; then
    if [ -n "$HAD" ]; then MODE=$HAD
    elif nvidia-smi >/dev/null 2>&1; then MODE=gpu
    else MODE=cpu; fi
fi
[ -z "$HAD" ] || [ "$HAD" = "$MODE" ] ||
    die "$VENV was set up for $HAD: delete it, or set ORZ_VENV to another folder, to set up for $MODE"
REQUIREMENTS=$ROOT/requirements-$MODE.txt
pin() { sed -nE "s/^($1==[^ ;]+).*/\1/p" "$REQUIREMENTS"; }
# A requirement file's entry of one package with its hashes, and all others.
entry() { awk -v name="$1==" '/^[^ #]/ { on = index($0, name) == 1 } on' "$REQUIREMENTS"; }
others() { awk -v name="$1==" '/^[^ #]/ { on = index($0, name) == 1 } !on' "$REQUIREMENTS"; }

# ---- stages: do_STAGE makes it, key_STAGE says from what

STAGES=(venv torch stack report curate deepspeed openrlhf package)

key_venv() { echo "$VENV $BOOTSTRAP"; }
key_torch() { pin torch; }
key_stack() { hash_of "$REQUIREMENTS"; }
key_report() { hash_of "$ROOT/requirements-report.txt"; }
key_curate() { hash_of "$ROOT/requirements-curate.txt"; }
# On CPU built with -march=native: another processor under the same folder needs another build.
key_deepspeed() {
    echo "$(pin deepspeed) $(pin torch) $MODE $OPS $([ "$MODE" = gpu ] || grep -m1 ^flags /proc/cpuinfo | sha256sum)"
}
key_openrlhf() { hash_of "$ROOT"/patches/{UPSTREAM,series,*.patch} "$ROOT"/tools/{patches,series}.py; }
# setup.py makes its extras of the requirement files.
key_package() {
    echo "$ROOT $(key_stack) $(key_report) $(key_curate) $(hash_of "$ROOT/setup.py" "$ROOT/pyproject.toml")"
}

do_venv() {
    if [ -e "$VENV/pyvenv.cfg" ] || [ -z "$(ls -A "$VENV" | grep -vx .orz)" ]; then
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON_FOUND" -m venv --clear "$VENV"
    else
        die "$VENV is not empty and not a virtual environment: move it, or set ORZ_VENV to another folder"
    fi
    mkdir -p "$STAMPS"
    pip install $BOOTSTRAP
}

do_torch() {
    if [ "$MODE" = gpu ]; then # in the stack; a torch without CUDA has another hash
        return
    else
        pip install --no-deps "$(pin torch)" ||
            pip install --no-deps --index-url "$TORCH_CPU_INDEX" "$(pin torch)"
    fi
}

do_stack() {
    pip install --no-deps $([ "$MODE" = cpu ] || echo --require-hashes) -r <(others deepspeed)
}

do_report() { pip install --no-deps -r "$ROOT/requirements-report.txt"; }
# Three of these are sources; pycosat's needs the compiler.
do_curate() { pip install --no-deps --no-build-isolation -r "$ROOT/requirements-curate.txt"; }

do_deepspeed() {
    # By ninja, which is in the environment, in parallel. On GPUs the optimizer alone, for A100 to B200 and RTX 30 to 50:
    # no node needs nvcc then. For CUDA also where no GPU is seen, as while an image is built.
    if [ "$MODE" = gpu ]; then
        env DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 DS_ENABLE_NINJA=1 PATH="$VENV/bin:$PATH" \
            TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;8.6;8.9;9.0;10.0;12.0}" \
            "$VENV/bin/python" -m pip install --force-reinstall --no-cache-dir --no-deps --no-build-isolation \
            --require-hashes -r <(entry deepspeed)
        return
    fi
    # -g0 last: DeepSpeed asks for debug symbols, which double the compile time.
    printf '#!/bin/sh\nexec "%s" "$@" -g0\n' "$CXX_FOUND" >"$STAMPS/c++"
    chmod +x "$STAMPS/c++"
    # No pip cache: a wheel with machine code for this torch must not reach other projects.
    env $OPS DS_ENABLE_NINJA=1 CXX="$STAMPS/c++" PATH="$VENV/bin:$PATH" \
        "$VENV/bin/python" -m pip install --force-reinstall --no-cache-dir --no-deps --no-build-isolation "$(pin deepspeed)"
}

do_openrlhf() {
    rm -rf "$STAMPS/wheel"
    "$VENV/bin/python" "$ROOT/tools/patches.py" wheel --out "$STAMPS/wheel" || return 1
    pip install --no-deps --no-index --force-reinstall "$STAMPS"/wheel/*.whl
}

do_package() { pip install --no-deps --no-index --no-build-isolation -e "$ROOT"; }

# ---- what the machine must have

find_python() {
    local candidate found="" answer candidates=(python3.11 python3.12 python3.10 python3 python)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        # By running it: a version manager's shim may exist and refuse.
        answer=$("$candidate" - 2>/dev/null <<'PY'
import os, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
if version not in ("3.10", "3.11", "3.12"):
    print("is Python " + version)
    sys.exit()
try:
    import ensurepip, venv
except ImportError:
    print("lacks the venv module: install python%s-venv" % version)
    sys.exit()
if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("lacks the headers that DeepSpeed's kernels compile against: install python%s-dev" % version)
    sys.exit()
print("ok")
PY
        ) || answer="does not run"
        if [ "$answer" = ok ]; then
            PYTHON_FOUND=$candidate
            return
        fi
        [ "$answer" = "does not run" ] && [ -z "${PYTHON:-}" ] || found="$found; $candidate ${answer:-does not run}"
    done
    die "needs Python 3.10, 3.11 or 3.12 with venv${found:-; found none}. Install one, or name it: PYTHON=/path/to/python3.11 bash tools/setup.sh"
}

find_compiler() {
    for CXX_FOUND in ${CXX:-g++ c++ clang++}; do
        CXX_FOUND=$(command -v "$CXX_FOUND") || continue
        echo 'int main() {}' | "$CXX_FOUND" -std=c++20 -fopenmp -x c++ -o "$STAMPS/probe" - >>"$LOG" 2>&1 || continue
        rm -f "$STAMPS/probe"
        return
    done
    die "needs a C++ compiler with C++20 and OpenMP${CXX:+ (CXX=$CXX is none)}: install g++ 10 or newer (apt-get install g++), or set CXX"
}

find_git() {
    command -v git >/dev/null || die "needs git, which applies patches/ to OpenRLHF: install it (apt-get install git)"
}

check_disk() {
    local need=${ORZ_MIN_FREE_GB:-$([ "$MODE" = cpu ] && echo 8 || echo 30)} free
    free=$(($(df -Pk "$VENV" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    [ "$free" -ge "$need" ] || die "needs $need GB of free disk for $VENV, has $free: free some, or set ORZ_VENV to a larger disk"
}

# Before gigabytes are downloaded: the driver, where there is one, and nvcc must be of the CUDA that torch is built for.
check_cuda() {
    local wanted found nvcc
    wanted=$(pin cuda-toolkit | grep -oE '==[0-9]+' | tr -d =)
    found=$(nvidia-smi 2>/dev/null | grep -oE 'CUDA Version: *[0-9]+' | grep -oE '[0-9]+' | head -n 1) || true
    [ -z "$found" ] || [ "$found" -ge "$wanted" ] ||
        die "needs a driver for CUDA $wanted, nvidia-smi says CUDA $found: install a newer driver (580 or later)"
    [ -n "$found" ] || say "no GPU answers here: fine for an image or a login node"
    nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
    command -v "$nvcc" >/dev/null || [ -n "${CUDA_HOME:-}" ] || nvcc=/usr/local/cuda/bin/nvcc
    found=$("$nvcc" --version 2>/dev/null | grep -oE 'release [0-9]+' | grep -oE '[0-9]+') || true
    [ "$found" = "$wanted" ] ||
        die "needs nvcc of CUDA $wanted, has ${found:-none}: install it (apt-get install cuda-toolkit-$wanted-0), or set CUDA_HOME to it"
    export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(command -v "$nvcc")")")}
}

# The one line that a failed stage leaves on the screen.
explain() {
    local stage=$1 own
    own=$(grep -aE '^(setup: error|tools/patches.py): ' "$STAGE_LOG" | tail -n 1) || true
    if [ -n "$own" ]; then
        printf 'setup: error: %s\n' "${own#setup: error: }" >&2
    elif grep -aqE 'No space left on device|Errno 28' "$STAGE_LOG"; then
        printf 'setup: error: the disk is full (%s): free some, or set ORZ_VENV and TMPDIR to a larger one, and run again\n' "$stage" >&2
    elif grep -aqiE 'connection (error|refused|broken)|NewConnectionError|name resolution|Max retries|timed out|ProxyError|SSLError|Could not fetch' "$STAGE_LOG"; then
        printf 'setup: error: pip cannot reach its package index (%s): check the network, PIP_INDEX_URL and proxies, and run again; log: %s\n' "$stage" "$LOG" >&2
    elif own=$(grep -aoE 'No matching distribution found for .*' "$STAGE_LOG" | tail -n 1) && [ -n "$own" ]; then
        printf 'setup: error: pip finds no %s (%s): check that its index is reachable and complete, and run again; log: %s\n' "${own#*for }" "$stage" "$LOG" >&2
    else
        printf 'setup: error: %s failed: %s; log: %s\n' "$stage" \
            "$(grep -aE '^ *(ERROR|error|fatal)' "$STAGE_LOG" | tail -n 1 | cut -c1-200)" "$LOG" >&2
    fi
    exit 1
}

# ---- run

stamped() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$(key_"$1")" ]; }

TODO=()
[ -x "$VENV/bin/python" ] || rm -f "$STAMPS"/{venv,torch,stack,report,curate,deepspeed,openrlhf,package}
for stage in "${STAGES[@]}"; do stamped "$stage" || TODO+=("$stage"); done
if [ ${#TODO[@]} -eq 0 ]; then
    say "nothing to do: $VENV is ready ($MODE)"
    exit 0
fi

mkdir -p "$STAMPS" 2>/dev/null || die "cannot write $VENV: set ORZ_VENV to a folder that you own"
if command -v flock >/dev/null; then # two set-ups of one folder take turns
    exec 9>"$STAMPS/lock"
    flock 9
fi
: >"$LOG"
case " ${TODO[*]} " in *" venv "*) find_python ;; esac
case " ${TODO[*]} " in *" deepspeed "* | *" curate "*) find_compiler ;; esac
case " ${TODO[*]} " in *" openrlhf "*) find_git ;; esac
[ "$MODE" = cpu ] || case " ${TODO[*]} " in *" stack "* | *" deepspeed "*) check_cuda ;; esac
case " ${TODO[*]} " in *" stack "*) check_disk ;; esac

STAGE_LOG=$(mktemp)
trap 'rm -f "$STAGE_LOG"' EXIT
START=$SECONDS
for stage in "${TODO[@]}"; do
    stamped "$stage" && continue # the set-up before us in the queue did it
    began=$SECONDS
    rm -f "$STAMPS/$stage"
    set +e
    (set -e; "do_$stage") >"$STAGE_LOG" 2>&1
    status=$?
    set -e
    mkdir -p "$STAMPS"
    cat "$STAGE_LOG" >>"$LOG"
    [ $status -eq 0 ] || explain "$stage"
    key_"$stage" >"$STAMPS/$stage"
    [ "$stage" != venv ] || echo "$MODE" >"$STAMPS/mode"
    say "$stage done in $((SECONDS - began)) s"
done
say "ready in $((SECONDS - START)) s: $VENV ($MODE)"
