"""The figures of a report: each of all models together, and the same in words."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from robjax.diagnose.report import Report
from robjax.diagnose.results import Lens
from robjax.reporting import figures

Lenses = Mapping[str, Mapping[str, Lens]]
"""Model -> lens -> what it found."""

_PARTS = {
    "fisher": "Fisher (non-robust)",
    "softmax": "softmax (robust)",
    "network": "network (robust)",
}


class Drawing(NamedTuple):
    """A figure, its title, and what it shows to those who cannot see it."""

    title: str
    words: str
    figure: Figure


def draw(report: Report) -> list[Drawing]:
    """All figures for which there are numbers."""
    lenses = {name: model.lenses for name, model in report.models.items()}
    norm = str(report.settings["threat"]).split()[0]
    drawn = [
        _curves(_having(lenses, "curve", "epsilons"), norm),
        _distances(_having(lenses, "distances", "distance"), norm),
        _divergence(
            {n: found for n, found in lenses.items() if found["divergence"].numbers}
        ),
        _orders(_having(lenses, "orders", "orders")),
    ]
    return [each for each in drawn if each is not None]


def _having(lenses: Lenses, lens: str, array: str) -> Lenses:
    return {
        name: found for name, found in lenses.items() if array in found[lens].arrays
    }


def _curves(lenses: Lenses, norm: str) -> Drawing | None:
    if not lenses:
        return None
    series, words = {}, []
    for name, found in lenses.items():
        clean, arrays = found["attacks"].numbers["accuracy"], found["curve"].arrays
        radii = np.append(0, arrays["epsilons"])
        accuracy = np.append(clean.value, arrays["accuracy"])
        series[name] = radii, accuracy, np.append(clean.stderr, arrays["stderr"])
        points = zip(radii, accuracy, strict=True)
        words.append(
            f"{name}: " + ", ".join(f"{100 * a:.0f} % at {e:.3g}" for e, a in points)
        )
    title = "Robust accuracy over the radius"
    figure = figures.robustness_curves(series, title=title, xlabel=f"ε ({norm})")
    return Drawing(f"{title}, under Auto-PGD", "; ".join(words), figure)


def _distances(lenses: Lenses, norm: str) -> Drawing | None:
    if not lenses:
        return None
    series, words = {}, []
    for name, found in lenses.items():
        distance = found["distances"].arrays["distance"]
        known = np.sort(distance[np.isfinite(distance)])
        beyond = 1 - np.arange(1, len(known) + 1) / len(distance)
        series[name] = known, beyond, np.sqrt(beyond * (1 - beyond) / len(distance))
        words.append(f"{name}: half of the images beyond {np.median(distance):.3g}")
    title = "Distance to another prediction"
    figure = figures.robustness_curves(series, title=title, xlabel=f"distance ({norm})")
    figure.axes[0].set_ylabel("images beyond [%]")
    return Drawing(title, "; ".join(words), figure)


def _divergence(lenses: Lenses) -> Drawing | None:
    if not lenses:
        return None
    shares = {
        name: {
            words: [found["divergence"].value(part)] for part, words in _PARTS.items()
        }
        for name, found in lenses.items()
    }
    title = "Parts of the divergence between classes"
    figure = figures.bars(
        {"": shares}, title=title, ylabel="share of M [%]", percent=True
    )
    figure.axes[0].set_ylim(auto=True)  # a part may be negative
    figure.axes[0].autoscale()
    words = [
        f"{name}: " + ", ".join(f"{k} {100 * v[0]:.0f} %" for k, v in parts.items())
        for name, parts in shares.items()
    ]
    return Drawing(title, "; ".join(words), figure)


def _orders(lenses: Lenses) -> Drawing | None:
    if not lenses:
        return None
    series = {name: found["orders"].arrays["orders"] for name, found in lenses.items()}
    orders = np.arange(next(iter(series.values())).shape[1])
    title = "What an attack changes, by order of interaction"
    panel = figures.Panel(series, "", "log p taken away [nats]")
    figure = figures.curves([[panel]], title=title, x=orders, xlabel="order")
    words = [
        f"{name}: most at order {np.abs(each.mean(0)).argmax()} of 0 to {orders[-1]}"
        for name, each in series.items()
    ]
    return Drawing(title, "; ".join(words), figure)
