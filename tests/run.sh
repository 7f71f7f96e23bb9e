#!/usr/bin/env bash
# All tests but the slow ones, the quick ones first; sets up if need be. They are of the CPU, also where there is a GPU:
# tests/gpu/run.sh is for that.
#
#   bash tests/run.sh [pytest arguments]
#
# With a path among the arguments only that is run. Exit status is pytest's.
set -euo pipefail
unset CDPATH # cd would look there, and print where it went
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# beside an environment for GPUs one of its own
if [ -z "${ORZ_VENV:-}" ] && grep -qsx gpu .venv/.orz/mode; then export ORZ_VENV=$PWD/.venv-cpu; fi
bash tools/setup.sh cpu
export CUDA_VISIBLE_DEVICES=
PYTHON=${ORZ_VENV:-.venv}/bin/python

began=$SECONDS
status=0
if [ $# -gt 0 ]; then
    suites=(tests/unit tests/report tests/contracts tests/recipes tests/e2e)
    for arg in "$@"; do
        # A path may carry ::test_name. The default suites would run beside it.
        [ ! -e "${arg%%::*}" ] || suites=()
    done
    "$PYTHON" -m pytest ${suites[@]+"${suites[@]}"} "$@" || status=$?
else
    # Two streams: each has work for a core, and at the start and the end of a training run that is all there is.
    log=$(mktemp)
    set -m # a process group of its own, to end it whole
    {
        failed=0
        "$PYTHON" -m pytest -p no:cacheprovider tests/contracts tests/recipes || failed=$?
        "$PYTHON" -m pytest -p no:cacheprovider --durations=10 tests/e2e/test_[k-pr-z]*.py || failed=$?
        exit $failed
    } >"$log" 2>&1 &
    beside=$!
    set +m
    trap 'rm -f "$log"' EXIT
    trap 'kill -- -"$beside" 2>/dev/null; exit 130' INT TERM
    "$PYTHON" -m pytest --durations=10 tests/unit tests/report || status=$?
    "$PYTHON" -m pytest --durations=10 tests/e2e/test_[a-jq]*.py || status=$?
    tail -n +1 -f --pid="$beside" "$log"
    wait "$beside" || status=$?
fi
if [ $status -eq 0 ]; then
    echo "tests: all passed in $((SECONDS - began)) s"
else
    echo "tests: FAILED (pytest exit status $status) after $((SECONDS - began)) s" >&2
fi
exit $status
