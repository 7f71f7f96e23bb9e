"""Tests compute little at a time: with more than one thread each they wait for each other's threads.

A test of a whole run takes this out of the run's environment again (tests/e2e/runs.py).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes of the tests
