"""What the figures show, read back from their axes and files."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from robjax.reporting import figures

EPOCHS, SEEDS = 5, 3


def drawn(values):
    """A one-panel figure of one series and its axes."""
    panel = figures.Panel({"a": values}, "panel", "y [unit]")
    figure = figures.curves([[panel]], title="title")
    return figure, figure.axes[0]


def test_curves_draw_the_mean_and_a_band_of_one_standard_error():
    values = np.random.default_rng(0).normal(size=(SEEDS, EPOCHS))
    _, axes = drawn(values)
    mean = values.mean(0)
    stderr = np.sqrt(((values - mean) ** 2).sum(0) / (SEEDS - 1) / SEEDS)
    line = axes.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), np.arange(EPOCHS))
    np.testing.assert_allclose(np.asarray(line.get_ydata()), mean)
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    for epoch in range(EPOCHS):
        heights = corners[corners[:, 0] == epoch, 1]
        assert heights.min() == pytest.approx(mean[epoch] - stderr[epoch])
        assert heights.max() == pytest.approx(mean[epoch] + stderr[epoch])


def test_one_seed_has_no_band():
    _, axes = drawn(np.ones((1, EPOCHS)))
    heights = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert (heights == 1).all()


def test_metric_parts_has_a_column_for_each_model_with_accuracies_beneath():
    names = ("total", "fisher", "softmax", "network", "accuracy", "robust_accuracy")
    models = {
        model: {
            name: np.full((SEEDS, EPOCHS), i + 0.1 * j) for i, name in enumerate(names)
        }
        for j, model in enumerate(("one", "two", "three"))
    }
    figure = figures.metric_parts(models, title="parts")
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["one", "two", "three"]
    for column, model in enumerate(models):
        above, below = figure.axes[column], figure.axes[3 + column]
        for line, name in zip(above.lines, names[:4], strict=True):
            np.testing.assert_allclose(
                np.asarray(line.get_ydata()), models[model][name][0]
            )
        for line, name in zip(below.lines, names[4:], strict=True):
            np.testing.assert_allclose(
                np.asarray(line.get_ydata()), 100 * models[model][name][0]
            )


def test_scatter_draws_every_seed_and_epoch_once():
    x = np.arange(1, 1 + SEEDS * EPOCHS, dtype=float).reshape(SEEDS, EPOCHS)
    y = x / x.max()
    figure = figures.scatter({"a": (x, y)}, title="t", xlabel="x", ylabel="y")
    points = np.concatenate([line.get_xydata() for line in figure.axes[0].lines])
    expected = np.stack([x.ravel(), 100 * y.ravel()], axis=1)
    np.testing.assert_allclose(np.sort(points, axis=0), expected)


def test_robustness_curves_draw_every_radius_with_its_error():
    radii, accuracy, stderr = [0, 0.01, 0.03], [0.9, 0.5, 0.01], [0.02, 0.05, 0.02]
    series = {"a": (radii, accuracy, stderr), "b": (radii, [1, 1, 0], [0, 0, 0])}
    figure = figures.robustness_curves(series, title="t", xlabel="ε (L∞)")
    axes = figure.axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xdata()), radii)
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [90, 50, 1])
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    for radius, low, high in zip(radii, (88, 45, 0), (92, 55, 3), strict=True):
        heights = corners[np.isclose(corners[:, 0], radius), 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [low, high])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ε (L∞)", "robust accuracy [%]")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_lines_differ_in_dashes_and_colour():
    series = {str(i): np.full((2, EPOCHS), i) for i in range(5)}
    figure = figures.curves([[figures.Panel(series, "", "y")]], title="t")
    lines = figure.axes[0].lines
    assert len({to_hex(line.get_color()) for line in lines}) == 5
    dashes = {repr(vars(line)["_dash_pattern"]) for line in lines}
    assert len(dashes) == 5


def test_saves_both_formats_the_same_way_each_time(tmp_path):
    values = np.random.default_rng(0).normal(size=(SEEDS, EPOCHS))
    first = figures.save(drawn(values)[0], tmp_path / "a")
    again = figures.save(drawn(values)[0], tmp_path / "b")
    assert [path.name for path in first] == ["a.png", "a.svg"]
    assert first[1].read_bytes() == again[1].read_bytes()
    assert b"y [unit]" in first[1].read_bytes()
    with Image.open(first[0]) as image:
        assert min(image.size) > 400
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.png", "a.svg", "b.png", "b.svg")
    ]


def test_curves_over_something_else_than_epochs():
    panel = figures.Panel({"a": np.ones((2, 3))}, "panel", "y")
    figure = figures.curves([[panel]], title="title", x=[0, 0.5, 1], xlabel="t")
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0, 0.5, 1])
    assert figure.axes[0].get_xlabel() == "t"


@pytest.mark.parametrize(("seeds", "words"), [(3, "mean ± s.e."), (1, "")])
def test_the_legend_says_what_bands_and_errors_are(seeds, words):
    values = np.ones((seeds, EPOCHS))
    panel = figures.Panel({"a": values}, "", "y")
    lines = figures.curves([[panel]], title="t")
    bars = figures.bars({"": {"a": {"b": values[:, 0]}}}, title="t", ylabel="y")
    for figure in (lines, bars):
        legend = figure.axes[0].get_legend()
        assert legend is not None
        assert legend.get_title().get_text() == words


def test_matrices_share_one_scale():
    one, two = np.arange(9.0).reshape(3, 3), 20 + np.arange(9.0).reshape(3, 3)
    figure = figures.matrices(
        {"one": one, "two": two}, title="title", xlabel="x", ylabel="y"
    )
    for axes, table in zip(figure.axes, (one, two), strict=False):
        (image,) = axes.images
        assert image.get_clim() == (0, 28)
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), table)


def test_rows_and_columns_of_a_matrix_have_names():
    figure = figures.matrices(
        {"": np.eye(2)}, title="title", xlabel="x", ylabel="y", names=["cnn", "mlp"]
    )
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cnn", "mlp"]


@pytest.mark.parametrize("percent", [False, True])
def test_bars_are_means_over_seeds_with_their_errors(percent):
    values = {"left": np.array([0.1, 0.3]), "right": np.array([0.5, 0.7])}
    figure = figures.bars(
        {"panel": {"a": values}}, title="title", ylabel="y", percent=percent
    )
    (axes,) = figure.axes
    scale = 100 if percent else 1
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, [0.2 * scale, 0.6 * scale])
    (error,) = axes.collections
    ends = [path.vertices[:, 1] for path in error.get_paths()]
    np.testing.assert_allclose(ends[0], [0.1 * scale, 0.3 * scale])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["left", "right"]


def test_points_have_a_panel_for_each_name():
    series = {"a": ([1.0, 10.0], [0.1, 0.2]), "b": ([2.0], [0.3])}
    figure = figures.points(series, title="title", xlabel="x", ylabel="y")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    np.testing.assert_array_equal(
        np.asarray(figure.axes[0].lines[0].get_xdata()), [1, 10]
    )


def test_a_plane_shows_shares_in_per_cent():
    line = np.array([0.9, 1.0]), np.array([0.5, 0.0])
    dots = np.full((2, 3), 0.95), np.full((2, 3), 0.2)
    figure = figures.plane(
        {"bound": line}, {"models": dots}, title="t", xlabel="x", ylabel="y"
    )
    axes = figure.axes[0]
    assert [drawn.get_label() for drawn in axes.lines] == ["bound", "models"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [90, 100])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.full(6, 20.0))


def test_pictures_have_titles_above_names_left_and_captions_below(tmp_path):
    grey, colour = np.full((3, 4, 4, 1), 0.5), np.ones((3, 4, 4, 3))
    figure = figures.pictures(
        {"grey": grey, "colour": colour},
        title="t",
        columns=["a", "b", "c"],
        captions={"colour": ["1", "2", "3"]},
    )
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "1", "2", "3"]
    assert figure.axes[3].get_ylabel() == "colour"
    shown = figure.axes[0].images[0]
    # half of white is drawn grey whatever else there is in the image
    assert shown.get_clim() == (0, 1) and (shown.get_array() == 0.5).all()
    assert figures.save(figure, tmp_path / "grid")[0].exists()


def test_curves_and_points_on_the_axes_asked_for():
    panel = figures.Panel({"a": np.ones((1, 3))}, "", "y")
    figure = figures.curves([[panel]], title="t", x=[1, 10, 100], xscale="log")
    assert figure.axes[0].get_xscale() == "log"
    figure = figures.points(
        {"a": ([0, 1], [1, 2])}, title="t", xlabel="x", ylabel="y", xscale="linear"
    )
    assert figure.axes[0].get_xscale() == "linear"
