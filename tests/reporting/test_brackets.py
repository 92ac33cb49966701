import numpy as np
import pytest

from robjax.reporting import brackets


def test_the_band_lies_between_proven_and_unbroken():
    series = {
        "standard": ([0, 0.1, 0.2], [0.9, 0.1, 0.0], [0.9, 0.4, 0.2]),
        "IBP": ([0, 0.1], [0.8, 0.7], [0.8, 0.7]),
    }
    figure = brackets.bracket_curves(series, title="title", xlabel="ε (L∞)")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "ε (L∞)" and "%" in axes.get_ylabel()
    band, closed = (c.get_paths()[0].vertices for c in axes.collections)
    at = np.isclose(band[:, 0], 0.1)
    assert {band[at, 1].min(), band[at, 1].max()} == {10, 40}
    assert np.ptp(closed[np.isclose(closed[:, 0], 0.1), 1]) == 0
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words[:2] == ["standard, proven", "standard, not broken"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (([0, 1], [0.5, 0.4], [0.5]), r"arrays \[E\].*'net'"),
        (([0], [0.6], [0.5]), "more images proven"),
    ],
)
def test_arrays_that_are_no_bracket(values, words):
    with pytest.raises(ValueError, match=words):
        brackets.bracket_curves({"net": values}, title="t", xlabel="ε")
