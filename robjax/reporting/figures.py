"""Figures as functions of plain arrays, in colours that the colour-blind can tell.

A quantity followed over training is an array [seeds, epochs + 1]; epoch 0, before
training, stands first. Its mean over the seeds is drawn, with a band of ± one standard
error. Each line has its own dash pattern as well as its own colour. There are seven of
both; from the eighth name on each has its own pair of them, up to 49 names.

Every function but `save` returns a matplotlib `Figure` and opens no window.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from robjax.reporting.style import STYLE, check_same_names, legend_right, looks_of
from robjax.reporting.tables import mean_stderr
from robjax.runs import files


def save(figure: Figure, path: files.PathLike) -> list[Path]:
    """Writes a figure as ``<path>.png`` and ``<path>.svg``, each all or nothing.

    >>> import tempfile
    >>> figure = points({"a": ([1, 10], [2, 3])}, title="t", xlabel="x", ylabel="y")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print([file.name for file in save(figure, f"{folder}/dots")])
    ['dots.png', 'dots.svg']

    Returns:
      The two files.
    """
    written = []
    for suffix in ("png", "svg"):
        target = Path(f"{os.fspath(path)}.{suffix}")
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        with files.atomic_write(target) as file:
            file.write(buffer.getvalue())
        written.append(target)
    return written


class Panel(NamedTuple):
    """What `curves` draws on one set of axes.

    Attributes:
      series: name -> values [seeds, epochs + 1].
      title: stands above the axes; empty: none.
      ylabel: what is drawn and its unit.
      scale: of the vertical axis. "percent" is linear and turns shares into per cent;
        "symlog" is linear within ± `linear_to` and shows both signs beyond.
      linear_to: see `scale`.
    """

    series: Mapping[str, ArrayLike]
    title: str
    ylabel: str
    scale: Literal["linear", "log", "symlog", "percent"] = "linear"
    linear_to: float = 0.1


def curves(
    rows: Sequence[Sequence[Panel]],
    *,
    title: str,
    x: ArrayLike | None = None,
    xlabel: str = "epoch",
    xscale: str = "linear",
) -> Figure:
    """Draws quantities over training (or over `x`) as a grid of panels.

    The panels of a row share their vertical axis and one legend at the right. A row
    with the same names as the row above has no legend.

    >>> series = {"a": np.ones((3, 5)), "b": np.zeros((3, 5))}
    >>> panel = Panel(series, title="network", ylabel="M [nats]")
    >>> axes = curves([[panel]], title="M over training").axes[0]
    >>> len(axes.lines), axes.get_xlabel(), axes.get_ylabel()
    (2, 'epoch', 'M [nats]')

    Args:
      rows: rows of panels, all of the same length.
      title: what the figure shows, in words.
      x: [points] what the quantities are followed over; None: epochs from 0 on.
      xlabel: its name and unit.
      xscale: "linear" or "log".

    Raises:
      ValueError: the panels of a row have different names, or more than 49.
    """
    for row in rows:
        check_same_names("rows", (panel.series for panel in row))
    with matplotlib.rc_context(STYLE):
        columns = len(rows[0])
        figure, grid = _grid(len(rows), columns, title)
        named = None
        for axes_row, panels in zip(grid, rows, strict=True):
            for axes, panel in zip(axes_row, panels, strict=True):
                _draw_panel(axes, panel, x)
                axes.label_outer()
            if list(panels[0].series) != named:
                named = list(panels[0].series)
                legend_right(axes_row, panels[0].series.values())
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
            if xscale != "linear":  # to set it would undo the whole numbers
                axes.set_xscale(xscale)
        figure.align_ylabels(grid[:, 0])
    return figure


def metric_parts(
    models: Mapping[str, Mapping[str, ArrayLike]], *, title: str
) -> Figure:
    """Draws the parts of the KL metric above the accuracies, over training.

    Each model has a column.

    >>> names = ["total", "fisher", "softmax", "network", "accuracy", "robust_accuracy"]
    >>> values = dict.fromkeys(names, np.ones((3, 5)))
    >>> figure = metric_parts({"one": values, "two": values}, title="parts")
    >>> [len(axes.lines) for axes in figure.axes]
    [4, 4, 2, 2]

    Args:
      models: name -> {"fisher", "softmax", "network", "total": nats;
        "accuracy", "robust_accuracy": shares}, each [seeds, epochs + 1].
      title: what the figure shows, in words.
    """
    parts = {
        "total M": "total",
        "Fisher (non-robust)": "fisher",
        "softmax (robust)": "softmax",
        "network (robust)": "network",
    }
    rates = {"clean": "accuracy", "robust": "robust_accuracy"}
    above = [
        Panel(
            series={label: values[part] for label, part in parts.items()},
            title=name,
            ylabel="mean over pairs [nats]",
            scale="symlog",
        )
        for name, values in models.items()
    ]
    below = [
        Panel(
            series={label: values[rate] for label, rate in rates.items()},
            title="",
            ylabel="accuracy [%]",
            scale="percent",
        )
        for values in models.values()
    ]
    return curves([above, below], title=title)


def scatter(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draws robust accuracy in % against a positive quantity on a log axis.

    There is one dot for each seed and epoch. Those of the last epoch are filled.

    >>> series = {"a": (np.full((3, 5), 10.0), np.full((3, 5), 0.25))}
    >>> axes = scatter(series, title="t", xlabel="‖F‖", ylabel="PGD-20 [%]").axes[0]
    >>> axes.lines[1].get_ydata().tolist(), axes.get_xscale()
    ([25.0, 25.0, 25.0], 'log')

    Args:
      series: name -> (quantity, accuracy), each [seeds, epochs + 1]; the accuracies
        are shares.
      title: what the figure shows, in words.
      xlabel: the quantity and its unit.
      ylabel: the accuracy and how it was measured.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        for (name, (x, y)), look in zip(
            series.items(), looks_of(len(series)), strict=True
        ):
            x = np.asarray(x, float)
            y = 100 * np.asarray(y, float)
            style = {"marker": look.marker, "linestyle": "none", "color": look.colour}
            axes.plot(x[:, :-1].ravel(), y[:, :-1].ravel(), fillstyle="none", **style)
            axes.plot(x[:, -1], y[:, -1], markersize=10, label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", ylim=(-3, 103))
        legend_right(grid[0])
    return figure


def points(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    xscale: str = "log",
) -> Figure:
    """Draws one panel of dots for each name.

    >>> series = {"a": ([1, 10], [2, 3]), "b": ([1], [2])}
    >>> figure = points(series, title="t", xlabel="x", ylabel="y")
    >>> [axes.get_title() for axes in figure.axes]
    ['a', 'b']

    Args:
      series: name -> (x, y), each [samples].
      title: what the figure shows, in words.
      xlabel: name and unit of x.
      ylabel: name and unit of y.
      xscale: "log" (x > 0) or "linear".
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(series), title)
        for axes, (name, (x, y)), look in zip(
            grid[0], series.items(), looks_of(len(series)), strict=True
        ):
            axes.plot(x, y, "o", color=look.colour, markersize=4, alpha=0.5)
            axes.set(title=name, xlabel=xlabel, xscale=xscale)
        grid[0, 0].set_ylabel(ylabel)
    return figure


def plane(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    dots: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draws curves and measured dots in one plane of two shares, in %.

    >>> bound = {"bound": ([0.9, 1.0], [0.5, 0.0])}
    >>> network = {"network": ([0.9], [0.2])}
    >>> figure = plane(bound, network, title="t", xlabel="x", ylabel="y")
    >>> [line.get_ydata().round().tolist() for line in figure.axes[0].lines]
    [[50.0, 0.0], [20.0]]

    Args:
      lines: name -> (x, y), each [points].
      dots: name -> (x, y), arrays of one shape.
      title: what the figure shows, in words.
      xlabel: name of the first share.
      ylabel: name of the second one.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        looks = looks_of(len(lines) + len(dots))
        for look, (name, (x, y)) in zip(looks, lines.items(), strict=False):
            style = {"color": look.colour, "linestyle": look.dashes}
            axes.plot(100 * np.asarray(x), 100 * np.asarray(y), label=name, **style)
        for look, (name, (x, y)) in zip(looks[len(lines) :], dots.items(), strict=True):
            style = {"color": look.colour, "marker": look.marker}
            # hollow: dots may lie on each other
            style |= {"linestyle": "none", "fillstyle": "none"}
            axes.plot(100 * np.ravel(x), 100 * np.ravel(y), label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        legend_right(grid[0])
    return figure


def pictures(
    rows: Mapping[str, ArrayLike],
    *,
    title: str,
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Shows images in a grid, a row for each name.

    >>> rows = {"image": np.zeros((2, 8, 8, 1)), "noise": np.ones((2, 8, 8, 1))}
    >>> figure = pictures(rows, title="t", columns=["3", "5"])
    >>> len(figure.axes), figure.axes[2].get_ylabel()
    (4, 'noise')

    Args:
      rows: name -> images [columns, H, W, 1 or 3] in [0, 1]; one channel is grey.
      title: what the figure shows, in words.
      columns: what stands above each column.
      captions: name -> what stands below each image of that row.
    """
    with matplotlib.rc_context(STYLE):
        # a caption has to be nearer to the image above than to the one below
        between = 0.3 if captions else 0.0  # inches
        size = (1.5 * len(columns) + 2.6, (1.6 + between) * len(rows) + 1.0)
        layout = ConstrainedLayoutEngine(hspace=between / 1.6)
        figure = Figure(figsize=size, layout=layout)
        figure.suptitle(title, fontsize=15, fontweight="bold")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
            below = (captions or {}).get(name, [""] * len(columns))
            for axes, image, words in zip(
                axes_row, np.asarray(images), below, strict=True
            ):
                shown = image[..., 0] if image.shape[-1] == 1 else image
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.set_xlabel(words, fontsize=11, labelpad=2)
                axes.grid(False)
                axes.spines[:].set(visible=True, color="0.8")
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(name, fontsize=11)
    return figure


def matrices(
    values: Mapping[str, ArrayLike],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    names: Sequence[str] | None = None,
) -> Figure:
    """Shows square tables [C, C] side by side, on one colour scale.

    What is NaN or infinite is left blank. To leave the diagonal out, set it to NaN.

    >>> table = np.arange(9.0).reshape(3, 3)
    >>> figure = matrices({"a": table}, title="t", xlabel="x", ylabel="y")
    >>> [float(end) for end in figure.axes[0].images[0].get_clim()]
    [0.0, 8.0]

    Args:
      values: name -> [C, C], the unit named in the title.
      title: what the figure shows, in words.
      xlabel: of the second index.
      ylabel: of the first index.
      names: [C] of rows and columns; None: their numbers, from 0.

    Raises:
      ValueError: an array is not [C, C], or none has a finite number.
    """
    squares = {name: np.asarray(square, float) for name, square in values.items()}
    for name, square in squares.items():
        if square.ndim != 2 or len(set(square.shape)) != 1:
            raise ValueError(
                f"values must be square tables [C, C], got {square.shape} for {name!r}"
            )
    known = np.concatenate([each[np.isfinite(each)] for each in squares.values()])
    if not known.size:
        raise ValueError("values must hold a finite number, got none")
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(values), title)
        scale = {"vmin": known.min(), "vmax": known.max(), "cmap": "viridis"}
        shown: Any = None
        for axes, (name, square) in zip(grid[0], squares.items(), strict=True):
            table = np.where(np.isfinite(square), square, np.nan)
            shown = axes.imshow(table, **scale)
            axes.grid(False)
            axes.set(title=name, xlabel=xlabel)
            axes.set_xticks(range(len(table)), names)
            axes.set_yticks(range(len(table)), names)
        grid[0, 0].set_ylabel(ylabel)
        figure.colorbar(shown, ax=list(grid[0]), shrink=0.8)
    return figure


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, ArrayLike]]],
    *,
    title: str,
    ylabel: str,
    percent: bool = False,
) -> Figure:
    """Draws bars, means over seeds, with their errors of ± one standard error.

    >>> accuracy = {"clean": [0.9, 0.9], "robust": [0.4, 0.6]}
    >>> figure = bars({"": {"net": accuracy}}, title="t", ylabel="%", percent=True)
    >>> [float(round(bar.get_height())) for bar in figure.axes[0].patches]
    [90.0, 50.0]

    Args:
      panels: panel -> series -> label on the horizontal axis -> values [seeds].
      title: what the figure shows, in words.
      ylabel: what is drawn and its unit.
      percent: the values are shares, to be drawn in %.

    Raises:
      ValueError: series or labels differ from panel to panel, or are more than 49.
    """
    check_same_names("panels", panels.values())
    check_same_names("series", (v for each in panels.values() for v in each.values()))
    scale = 100 if percent else 1
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(panels), title)
        for axes, (name, series) in zip(grid[0], panels.items(), strict=True):
            width = 0.8 / len(series)
            looks = looks_of(len(series))
            for index, (label, values) in enumerate(series.items()):
                mean, stderr = mean_stderr(scale * np.stack(list(values.values()), 1))
                at = np.arange(len(mean)) + (index - (len(series) - 1) / 2) * width
                error = {"yerr": np.nan_to_num(stderr), "capsize": 3}
                style = {"color": looks[index].colour, "hatch": looks[index].hatch}
                axes.bar(at, mean, width, label=label, **style, **error)
            labels = list(next(iter(series.values())))
            axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right")
            axes.set(title=name)
            axes.grid(False, axis="x")
        if percent:
            grid[0, 0].set_ylim(0, 103)
        grid[0, 0].set_ylabel(ylabel)
        drawn = next(iter(panels.values())).values()
        legend_right(grid[0], [v for labels in drawn for v in labels.values()])
    return figure


def robustness_curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    """Draws robust accuracy over the radius, with a band of ± one standard error.

    >>> series = {"PGD": ([0, 0.1], [0.9, 0.5], [0.01, 0.02])}
    >>> figure = robustness_curves(series, title="t", xlabel="ε (L∞)")
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [90.0, 50.0]

    Args:
      series: name -> (radii [E], accuracies [E], standard errors [E]). Accuracies and
        their errors are shares. Of a `robjax.evaluation.Curve` these are `epsilons`,
        `accuracy` and `stderr`.
      title: what the figure shows, in words.
      xlabel: the norm of the radius and its unit.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        for (name, values), look in zip(
            series.items(), looks_of(len(series)), strict=True
        ):
            radii, mean, stderr = (np.asarray(value, float) for value in values)
            mean = 100 * mean
            band = 100 * np.nan_to_num(stderr)
            style = {"color": look.colour, "linestyle": look.dashes}
            style |= {"marker": look.marker, "markersize": 5}
            axes.plot(radii, mean, label=name, **style)
            low, high = np.clip([mean - band, mean + band], 0, 100)
            band = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(radii, low, high, **band)
        axes.set(xlabel=xlabel, ylabel="robust accuracy [%]", ylim=(-3, 103))
        legend_right(grid[0])
    return figure


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns], which share x and, by rows, y."""
    width = 4.2 * columns + (3.6 if columns > 1 else 5.5)
    figure = Figure(figsize=(width, 3.7 * rows + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=16, fontweight="bold")
    return figure, figure.subplots(
        rows, columns, squeeze=False, sharex=True, sharey="row"
    )


def _draw_panel(axes: Axes, panel: Panel, x: ArrayLike | None) -> None:
    """Lines and bands of a panel, over `x` or over the epochs."""
    for (name, values), look in zip(
        panel.series.items(), looks_of(len(panel.series)), strict=True
    ):
        unit = 100 if panel.scale == "percent" else 1
        mean, stderr = mean_stderr(unit * np.asarray(values, float))
        epochs = np.arange(len(mean)) if x is None else np.asarray(x)
        axes.plot(epochs, mean, color=look.colour, linestyle=look.dashes, label=name)
        band = np.nan_to_num(stderr)
        style = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(epochs, mean - band, mean + band, **style)
    axes.set(title=panel.title, ylabel=panel.ylabel)
    if x is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.scale == "percent":
        axes.set_ylim(-3, 103)
    elif panel.scale == "symlog":
        axes.set_yscale("symlog", linthresh=panel.linear_to)
    else:
        axes.set_yscale(panel.scale)
