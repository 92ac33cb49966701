import numpy as np
import pytest

from robjax.reporting import pairs

IMAGE = np.zeros((4, 8, 3))


def drawn(values, **options):
    images = {"x": IMAGE, "x_adv": IMAGE}
    return pairs.strongest_pairs(images, values, grid=(2, 2), title="t", **options)


def test_lines_join_the_strongest_pairs():
    values = np.zeros((2, 3, 4, 4))
    values[:, :, np.arange(4), np.arange(4)] = np.nan
    values[0, 2, 0, 1], values[0, 2, 1, 2], values[0, 2, 2, 3] = 2.0, -4.0, 1.0
    figure = drawn(values, orders=[2], count=2)
    above, below = figure.axes
    assert above.get_ylabel() == "x" and below.get_ylabel() == "x_adv"
    assert below.get_xlabel() == "strongest 4"
    (lines,) = above.collections
    # cells are 2 pixels high and 4 wide, and pixel (0, 0) has its centre at (0, 0)
    ends = [segment.tolist() for segment in lines.get_segments()]
    assert ends == [[[5.5, 0.5], [1.5, 2.5]], [[1.5, 0.5], [5.5, 0.5]]]
    assert lines.get_linewidths() == pytest.approx([6, 3])
    negative, positive = lines.get_edgecolors()
    assert (negative != positive).any()
    assert max(below.collections[0].get_linewidths()) == 0


def test_orders_by_default():
    figure = drawn(np.ones((2, 3, 4, 4)))
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["order 0", "order 1", "order 2"]


def test_interactions_of_another_shape():
    with pytest.raises(ValueError, match=r"interactions must be \[2, 3, 4, 4\]"):
        drawn(np.ones((1, 3, 4, 4)))
