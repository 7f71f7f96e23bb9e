"""The fit of values by place and by value, by hand."""

import numpy as np
import pytest

from openrlhf_orz.algo.value_fit import PARTS, FitTable


def test_a_table_by_hand():
    table = FitTable()
    table.add(np.array([0.25, 0.75]), np.array([1.0, 1.0]))  # two tokens: the first and the sixth tenth
    table.add(np.array([0.25, 0.35]), np.array([0.0, 0.0]))
    found = table.summary()
    assert found["tokens"] == 4 and found["value_mean"] == pytest.approx(0.4) and found["return_mean"] == 0.5
    # errors 0.75, 0.25, -0.25, -0.35: mean 0.1, mean square (0.5625 + 0.0625 + 0.0625 + 0.1225) / 4 = 0.2025
    assert found["squared_error"] == pytest.approx(0.2025)
    assert found["explained_variance"] == pytest.approx(1 - (0.2025 - 0.01) / 0.25)
    # values of 0.2 to 0.3: errors 0.75 and -0.25; of 0.7 to 0.8: 0.25; of 0.3 to 0.4: -0.35
    assert found["calibration_error"] == pytest.approx((0.5 + 0.25 + 0.35) / 4)
    assert [row["tokens"] for row in found["by_position"]] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    first, empty, sixth = (found["by_position"][i] for i in (0, 1, 5))
    assert first["explained_variance"] == pytest.approx(0.0)  # errors differ as the returns do
    assert first["calibration_error"] == pytest.approx(0.25)  # (0.75 - 0.25) / 2: one tenth of the values has both
    assert sixth["calibration_error"] == pytest.approx(0.3) and (sixth["from"], sixth["to"]) == (0.5, 0.6)
    assert empty["explained_variance"] is None and empty["value_mean"] is None and empty["calibration_error"] is None
    assert [row["tokens"] for row in found["by_value"]] == [2, 1, 1]


def test_every_token_is_in_one_tenth_and_values_out_of_range_in_the_nearest():
    table = FitTable(-1.0, 1.0)
    table.add(np.linspace(-9, 9, 25), np.full(25, 1.0))
    assert table.sums[:, :, 0].sum(1).tolist() == [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]
    assert table.sums[0, 0, 0] == 3 and table.sums[-1, -1, 0] == 2 and len(table.sums) == PARTS
    assert table.summary()["explained_variance"] is None, "the returns do not vary"
    table.add(np.zeros(0), np.zeros(0))
    assert table.summary()["tokens"] == 25
