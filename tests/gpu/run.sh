#!/usr/bin/env bash
# The first hour on a GPU. On a CPU the same checks run on tiny shapes, in seconds.
#
#   bash tests/gpu/run.sh [parts] [folder]      # parts: a, b or ab (default: ab with CUDA, a without)
#
# (a) kernels: needs torch, transformers and triton alone, and 8 minutes. PYTHON names the interpreter (default: .venv's).
# (b) the whole stack, which tools/setup.sh gpu makes: the quickstart's model colocated on one GPU, with its weight
#     sync checked; an engine killed in each phase; 0.5B (MODEL) with two numbers of sequences at once.
# FOLDER (default: runs/gpu-check) gets kernels.json and stack.json. Status 0: all that was expected was found.
set -euo pipefail
unset CDPATH # cd would look there, and print where it went
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-${ORZ_VENV:-.venv}/bin/python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cuda=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))')
parts=${1:-$([ "$cuda" = 1 ] && echo ab || echo a)}
folder=${2:-runs/gpu-check}
[[ $parts =~ ^(a|b|ab)$ ]] || { echo "usage: bash tests/gpu/run.sh [a|b|ab] [folder]" >&2; exit 2; }
mkdir -p "$folder"

status=0
if [[ $parts == *a* ]]; then "$PYTHON" tests/gpu/gpu_kernels.py "$folder/kernels.json" || status=1; fi
if [[ $parts == *b* ]]; then "$PYTHON" tests/gpu/gpu_stack.py "$folder" || status=1; fi
exit $status
