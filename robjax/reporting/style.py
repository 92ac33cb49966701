"""Colours, dashes and marks of figures, their names and legends."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

# Okabe & Ito, "Color Universal Design" (2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
# Any: the type of its keys has a name in newer versions of matplotlib only.
STYLE: Any = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    # Text stays text, and two runs give the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "robjax",
}


class Look(NamedTuple):
    """How one of several names is drawn; Any as matplotlib takes it."""

    colour: str
    dashes: Any
    marker: str
    hatch: str


def looks_of(count: int) -> list[Look]:
    """Of as many names, each unlike all others.

    >>> looks = looks_of(9)
    >>> looks[1].colour == looks[8].colour, looks[1].dashes == looks[8].dashes
    (True, False)

    Args:
      count: how many names there are.

    Raises:
      ValueError: there are not so many.
    """
    most = len(COLOURS) * len(DASHES)
    if count > most:
        raise ValueError(f"series must be {most} at most in a panel, got {count}")
    looks = []
    for index in range(count):
        row, column = divmod(index, len(COLOURS))
        other = (column + row) % len(DASHES)
        look = Look(COLOURS[column], DASHES[other], MARKERS[other], HATCHES[row])
        looks.append(look)
    return looks


def check_same_names(name: str, together: Iterable[Mapping[str, object]]) -> None:
    """Checks what shares a legend, or the labels of an axis.

    >>> check_same_names("rows", [{"a": 1}, {"b": 2}])
    Traceback (most recent call last):
      ...
    ValueError: rows must have the same names side by side, got ['a'] and ['b']

    Args:
      name: what the caller calls it, for the message.
      together: mappings whose keys have to be the same.

    Raises:
      ValueError: they are not.
    """
    first, *others = map(list, together)
    for other in others:
        if other != first:
            raise ValueError(
                f"{name} must have the same names side by side, got {first} and {other}"
            )


def legend_right(axes_row: Sequence[Axes], repeated: Iterable[ArrayLike] = ()) -> None:
    """Puts the legend at the right of a row of axes.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> _ = axes.plot([1, 2], label="a")
    >>> legend_right([axes])
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['a']

    Args:
      axes_row: the axes, of which the last one has all names.
      repeated: what is drawn, arrays [seeds, ...]. If one of them has more than one
        seed, the legend says what bands and errors are.
    """
    with_errors = any(len(np.asarray(values)) > 1 for values in repeated)
    axes_row[-1].legend(
        title="mean ± s.e." if with_errors else None,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
    )
