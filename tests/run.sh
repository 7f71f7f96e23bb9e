#!/usr/bin/env bash
# All tests, the quick ones first; sets up if need be.
#
#   bash tests/run.sh [pytest arguments]
#
# With a path among the arguments only that is run. Exit status is pytest's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh
PYTHON=${ORZ_VENV:-.venv}/bin/python

suites=(tests/unit tests/report tests/contracts tests/recipes tests/e2e)
for arg in "$@"; do
    # A path may carry ::test_name. The default suites would run beside it.
    [ ! -e "${arg%%::*}" ] || suites=()
done

began=$SECONDS
status=0
"$PYTHON" -m pytest ${suites[@]+"${suites[@]}"} "$@" || status=$?
if [ $status -eq 0 ]; then
    echo "tests: all passed in $((SECONDS - began)) s"
else
    echo "tests: FAILED (pytest exit status $status) after $((SECONDS - began)) s" >&2
fi
exit $status
