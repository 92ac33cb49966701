"""Interactions of pairs of image parts, drawn over the image as lines."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from robjax.reporting.style import COLOURS, STYLE

_POSITIVE, _NEGATIVE = COLOURS[5], COLOURS[1]


def strongest_pairs(
    images: Mapping[str, ArrayLike],
    interactions: ArrayLike,
    *,
    grid: tuple[int, int],
    title: str,
    orders: Sequence[int] | None = None,
    count: int = 10,
) -> Figure:
    """Draws the strongest pairs of each order over an image and its other versions.

    A row for each version, a column for each order. A line joins the centres of two
    cells, blue for a positive interaction and orange for a negative one. Its width is
    the strength, on one scale for a column.

    >>> image = np.zeros((8, 8, 1))
    >>> values = np.zeros((2, 3, 4, 4))
    >>> values[0, 1, 0, 3] = values[0, 1, 3, 0] = 2.0
    >>> figure = strongest_pairs(
    ...     {"x": image, "x_adv": image}, values, grid=(2, 2), title="t", count=1
    ... )
    >>> middle = figure.axes[1]
    >>> middle.get_title(), middle.collections[0].get_segments()[0].tolist()
    ('order 1', [[1.5, 1.5], [5.5, 5.5]])

    Args:
      images: name -> [H, W, 1 or 3] in [0, 1]; one channel is grey.
      interactions: [versions, n − 1, n, n] I_ij^(m) of each, such as those of
        `robjax.metrics.interactions.exact`; only i < j is read.
      grid: rows and columns of the n cells.
      title: what the figure shows, in words.
      orders: m; None: a low, a middle and a high one.
      count: how many pairs for each image and order.

    Raises:
      ValueError: `interactions` does not fit the images or the grid.
    """
    values = np.asarray(interactions, float)
    n = grid[0] * grid[1]
    if values.shape != (len(images), n - 1, n, n):
        raise ValueError(
            f"interactions must be [{len(images)}, {n - 1}, {n}, {n}] for "
            f"{len(images)} images and a grid of {n} cells, got {list(values.shape)}"
        )
    if orders is None:
        orders = sorted({round(share * (n - 2)) for share in (0.1, 0.5, 0.9)})
    first, second = np.triu_indices(n, 1)
    with matplotlib.rc_context(STYLE):
        size = (2.6 * len(orders) + 2.0, 2.7 * len(images) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=15, fontweight="bold")
        axes = figure.subplots(len(images), len(orders), squeeze=False)
        for column, order in enumerate(orders):
            chosen = values[:, order, first, second]
            strongest = np.abs(chosen).max()
            for row, (name, image) in enumerate(images.items()):
                panel = axes[row, column]
                centres = _show(panel, np.asarray(image), grid)
                top = np.argsort(-np.abs(chosen[row]), kind="stable")[:count]
                strength = chosen[row, top] / (strongest if strongest > 0 else 1)
                ends = np.stack([centres[first[top]], centres[second[top]]], axis=1)
                lines = LineCollection(
                    list(ends),
                    linewidths=6 * np.abs(strength),
                    colors=np.where(strength > 0, _POSITIVE, _NEGATIVE).tolist(),
                    alpha=0.8,
                    capstyle="round",
                )
                panel.add_collection(lines)
                if not column:
                    panel.set_ylabel(name)
            axes[0, column].set_title(f"order {order}")
            axes[-1, column].set_xlabel(f"strongest {strongest:.2g}")
        handles = [
            Line2D([], [], color=colour, linewidth=4, label=sign)
            for sign, colour in (("positive", _POSITIVE), ("negative", _NEGATIVE))
        ]
        figure.legend(handles=handles, loc="outside right upper")
    return figure


def _show(axes: Axes, image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Shows the image with its cells; returns their centres [n, 2], (x, y)."""
    height, width = image.shape[:2]
    axes.imshow(
        image.squeeze(-1) if image.shape[-1] == 1 else image, "gray", vmin=0, vmax=1
    )
    rows, columns = (np.arange(count + 1) / count for count in grid)
    at_rows, at_columns = rows * height - 0.5, columns * width - 0.5
    axes.set(xticks=at_columns, yticks=at_rows, xticklabels=[], yticklabels=[])
    axes.tick_params(length=0)
    x = (at_columns[1:] + at_columns[:-1]) / 2
    y = (at_rows[1:] + at_rows[:-1]) / 2
    return np.stack([np.tile(x, grid[0]), np.repeat(y, grid[1])], axis=1)
