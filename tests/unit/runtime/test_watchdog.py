"""A phase that hangs becomes an error with stacks; one that does not is left alone."""

import subprocess
import sys
import time

import pytest

from openrlhf_orz.runtime.watchdog import PhaseTimeout, stack, within


def hang_in_a_function_with_a_name():
    time.sleep(60)


def test_a_hang_becomes_an_error_with_stacks(tmp_path):
    begin = time.monotonic()
    with pytest.raises(
        PhaseTimeout, match="training took more than 0.5 s .--orz.training_timeout_s.: stacks"
    ) as error:
        with within(0.5, "training", "training_timeout_s", tmp_path):
            hang_in_a_function_with_a_name()
    assert time.monotonic() - begin < 50
    (report,) = tmp_path.glob("hang-training-*.txt")
    assert str(report) in str(error.value)
    text = report.read_text()
    assert "hang_in_a_function_with_a_name" in text or "no stack" in text  # py-spy may not look everywhere


def test_in_time_and_other_errors_pass(tmp_path):
    with within(5, "sync", "sync_timeout_s", tmp_path):
        pass
    with within(0, "sync", "sync_timeout_s", tmp_path):
        pass
    with pytest.raises(KeyError), within(5, "sync", "sync_timeout_s", tmp_path):
        raise KeyError
    time.sleep(0.1)
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_ended():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "has ended" in stack(ended.pid)
