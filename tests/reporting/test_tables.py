import math

import numpy as np
import pytest

from robjax.reporting import tables


def test_mean_stderr_by_hand():
    mean, stderr = tables.mean_stderr([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(mean, [2, 5])
    # s = √2 for (1, 3), and s / √2 = 1
    np.testing.assert_allclose(stderr, [1, 0])


def test_a_single_repetition_has_no_error():
    mean, stderr = tables.mean_stderr([4.0])
    assert mean == 4 and math.isnan(stderr)


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1.0, 3.0], "nats", "2.00 ± 1.00 nats"),
        ([0.4, 0.6], "%", "50.0 ± 10.0 %"),
        ([0.0, 0.0], "%", "0.00 ± 0.00 %"),
        ([12.0], "", "12.0"),
        ([-1500.0, -1500.0], "", "-1500 ± 0"),
        ([3e-9, 5e-9], "", "4.00e-09 ± 1.00e-09"),
        ([math.nan, 1.0], "", "undefined"),
    ],
)
def test_plus_minus(values, unit, expected):
    assert tables.plus_minus(values, unit=unit) == expected


def test_markdown_escapes_bars():
    text = tables.markdown(["a", "b"], [[1, "‖F‖ | x"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | ‖F‖ \\| x |\n"
