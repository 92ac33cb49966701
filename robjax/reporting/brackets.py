"""Robust accuracy from both sides, over the radius."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from robjax.reporting.style import STYLE, legend_right, looks_of


def bracket_curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    """Draws what is proven and what is attacked over the radius, and what lies between.

    For each name a band: its lower edge is the share of images that are proven, its
    upper edge the share that no attack broke. Where both are one line, the robust
    accuracy is known.

    >>> series = {"IBP": ([0, 0.1], [0.9, 0.5], [0.9, 0.6])}
    >>> figure = bracket_curves(series, title="t", xlabel="ε (L∞)")
    >>> [line.get_ydata().tolist() for line in figure.axes[0].lines]
    [[90.0, 50.0], [90.0, 60.0]]

    Args:
      series: name -> (radii [E], proven [E], not broken [E]), both shares. Of the
        `robjax.evaluation.Bracket` of each radius these are `lower.mean` and
        `upper.mean`.
      title: what the figure shows, in words.
      xlabel: the norm of the radius and its unit.

    Raises:
      ValueError: arrays differ in length, or more is proven than unbroken.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.7, 4.4), layout="constrained")
        figure.suptitle(title, fontsize=16, fontweight="bold")
        axes = figure.subplots()
        looks = looks_of(len(series))
        for (name, values), look in zip(series.items(), looks, strict=True):
            radii, proven, unbroken = (np.asarray(value, float) for value in values)
            _check(name, radii, proven, unbroken)
            style = {"color": look.colour, "marker": look.marker, "markersize": 5}
            axes.plot(radii, 100 * proven, label=f"{name}, proven", **style)
            style |= {"linestyle": "--", "fillstyle": "none"}
            axes.plot(radii, 100 * unbroken, label=f"{name}, not broken", **style)
            band = {"color": look.colour, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(radii, 100 * proven, 100 * unbroken, **band)
        axes.set(xlabel=xlabel, ylabel="images [%]", ylim=(-3, 103))
        legend_right([axes])
    return figure


def _check(
    name: str, radii: np.ndarray, proven: np.ndarray, unbroken: np.ndarray
) -> None:
    if not radii.shape == proven.shape == unbroken.shape or radii.ndim != 1:
        raise ValueError(
            f"series must be three arrays [E], got {radii.shape}, {proven.shape} and "
            f"{unbroken.shape} for {name!r}"
        )
    if not (proven <= unbroken).all():
        raise ValueError(
            f"series must not have more images proven than unbroken, got "
            f"{proven.tolist()} and {unbroken.tolist()} for {name!r}"
        )
