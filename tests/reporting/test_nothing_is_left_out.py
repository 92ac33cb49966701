"""What a figure is given is drawn, or refused; and captions stay with their images."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from robjax.reporting import figures

WORDS = {"title": "t", "xlabel": "x", "ylabel": "y"}
COUNTS = [8, 15, 49]


def drawn(figure):
    """The pixels, [H, W, 4]; this lays the figure out, too."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(figures.STYLE):
        figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer))


def names(count):
    return [f"name {index}" for index in range(count)]


def looks(lines):
    return {
        (to_hex(one.get_color()), repr(vars(one)["_dash_pattern"]), one.get_marker())
        for one in lines
    }


def legend_of(figure):
    legend = figure.axes[-1].get_legend()
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("count", COUNTS)
def test_curves_draw_every_name_in_a_look_of_its_own(count):
    series = {name: np.full((2, 4), i) for i, name in enumerate(names(count))}
    figure = figures.curves([[figures.Panel(series, "", "y")]], title="t")
    assert len(looks(figure.axes[0].lines)) == count
    assert legend_of(figure) == names(count)


@pytest.mark.parametrize("count", COUNTS)
def test_robustness_curves_draw_every_name(count):
    series = {name: ([0, 1], [0.9, 0.1], [0, 0]) for name in names(count)}
    figure = figures.robustness_curves(series, title="t", xlabel="x")
    assert len(looks(figure.axes[0].lines)) == count
    assert legend_of(figure) == names(count)


@pytest.mark.parametrize("count", COUNTS)
def test_scatter_draws_every_name(count):
    series = {name: (np.ones((2, 3)), np.ones((2, 3))) for name in names(count)}
    figure = figures.scatter(series, **WORDS)
    assert len(figure.axes[0].lines) == 2 * count
    assert len(looks(figure.axes[0].lines)) == count
    assert legend_of(figure) == names(count)


def test_points_draw_every_name():
    figure = figures.points({name: ([1, 2], [3, 4]) for name in names(9)}, **WORDS)
    assert [axes.get_title() for axes in figure.axes] == names(9)
    assert all(len(axes.lines) == 1 for axes in figure.axes)


@pytest.mark.parametrize("count", COUNTS)
def test_a_plane_draws_every_line_and_dot(count):
    lines = {f"line {name}": ([0, 1], [0, 1]) for name in names(count // 2)}
    dots = {f"dot {name}": ([0], [1]) for name in names(count - count // 2)}
    figure = figures.plane(lines, dots, **WORDS)
    assert len(looks(figure.axes[0].lines)) == count
    assert legend_of(figure) == [*lines, *dots]


@pytest.mark.parametrize("count", COUNTS)
def test_bars_draw_every_series_in_a_look_of_its_own(count):
    series = {name: {"a": [1.0], "b": [2.0]} for name in names(count)}
    figure = figures.bars({"": series}, title="t", ylabel="y")
    patches = figure.axes[0].patches
    assert len(patches) == 2 * count
    seen = {(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in patches}
    assert len(seen) == count
    assert legend_of(figure) == names(count)


MANY = names(50)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: figures.curves(
                [[figures.Panel({n: np.ones((1, 2)) for n in MANY}, "", "y")]],
                title="t",
            ),
            "series must be 49 at most in a panel, got 50",
        ),
        (
            lambda: figures.bars(
                {"": {n: {"a": [1.0]} for n in MANY}}, title="t", ylabel="y"
            ),
            "series must be 49 at most",
        ),
        (
            lambda: figures.curves(
                [
                    [
                        figures.Panel({"a": np.ones((1, 2))}, "", "y"),
                        figures.Panel({"b": np.ones((1, 2))}, "", "y"),
                    ]
                ],
                title="t",
            ),
            "rows must have the same names side by side",
        ),
        (
            lambda: figures.bars(
                {"": {"one": {"a": [1.0]}, "two": {"b": [1.0]}}}, title="t", ylabel="y"
            ),
            "series must have the same names side by side, got",
        ),
        (
            lambda: figures.bars(
                {"p": {"one": {"a": [1.0]}}, "q": {"two": {"a": [1.0]}}},
                title="t",
                ylabel="y",
            ),
            "panels must have the same names side by side",
        ),
        (
            lambda: figures.matrices({"a": np.ones((2, 3))}, **WORDS),
            r"values must be square tables \[C, C\], got \(2, 3\) for 'a'",
        ),
        (
            lambda: figures.matrices({"a": np.full((2, 2), np.nan)}, **WORDS),
            "values must hold a finite number",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_confusion_matrix_shows_the_right_classes():
    confusion = np.array([[90, 4, 6], [2, 80, 18], [1, 0, 99]])
    figure = figures.matrices({"net": confusion, "other": confusion.T}, **WORDS)
    for axes, table in zip(figure.axes, (confusion, confusion.T), strict=False):
        (image,) = axes.images
        assert image.get_clim() == (0, 99)
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), table)
    # the brightest colour of the map is on the diagonal of the picture itself
    brightest = np.array([253, 231, 37, 255])
    pixels = drawn(figures.matrices({"net": np.diag([1.0, 1.0, 1.0])}, **WORDS))
    assert (np.abs(pixels.astype(int) - brightest).max(-1) <= 2).mean() > 0.02


def test_what_is_nan_or_infinite_is_blank_and_not_in_the_scale():
    table = np.array([[np.nan, 2.0], [3.0, np.inf]])
    (image,) = figures.matrices({"a": table}, **WORDS).axes[0].images
    assert image.get_clim() == (2, 3)
    shown = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(np.isnan(shown), [[True, False], [False, True]])


@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (20, 8)])
def test_a_caption_is_nearer_to_its_image_than_to_the_next(rows, columns, size):
    images = {name: np.full((columns, *size, 1), 0.5) for name in names(rows)}
    figure = figures.pictures(
        images,
        title="t",
        columns=["c"] * columns,
        captions={name: ["says 3, judge 5"] * columns for name in list(images)[:-1]},
    )
    drawn(figure)
    grid = np.reshape(figure.axes, (rows, columns))
    for above, below in zip(grid[:-1].flat, grid[1:].flat, strict=True):
        caption = above.xaxis.label.get_window_extent()
        gap = above.get_window_extent().y0 - caption.y1
        space = caption.y0 - below.get_window_extent().y1
        assert gap >= 0 and space > 2.5 * gap and space > caption.height
