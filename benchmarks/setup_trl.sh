#!/usr/bin/env bash
# The environment of step_time.py --peer trl: TRL with a CPU torch, in .cache/trl-venv, apart from ours.
#
#   bash benchmarks/setup_trl.sh        TRL_VENV=... another place, PYTHON=... another interpreter
set -euo pipefail

unset CDPATH # cd would look there, and print where it went
cd "$(dirname "$0")/.."
VENV=${TRL_VENV:-.cache/trl-venv}
TORCH=$(grep -E '^torch==' requirements-cpu.txt)
TRANSFORMERS=$(grep -E '^transformers==' requirements-cpu.txt)

[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
pip install "$TORCH" || pip install --index-url https://download.pytorch.org/whl/cpu "$TORCH"
pip install trl==1.16.0 "$TORCH" "$TRANSFORMERS"
"$VENV/bin/python" -c 'import torch, trl; from trl import GRPOTrainer; print("trl", trl.__version__, "torch", torch.__version__)'
