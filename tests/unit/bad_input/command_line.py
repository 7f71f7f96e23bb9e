"""What the cases share: a row, who runs them, and what holds of every outcome."""

import os

GOOD = '{"question": "1+1=?", "answer": "2"}\n'
AS_ROOT = os.geteuid() == 0


def check(result, status, named):
    """``result`` of ``run`` has this status, its message all of ``named``, and it is no traceback."""
    assert result[0] == status, result[1]
    assert "Traceback" not in result[1]
    for text in named:
        assert text in result[1], f"{text!r} is not in: {result[1][-3000:]}"
