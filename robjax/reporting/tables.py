"""Numbers with their uncertainty, and Markdown tables of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def mean_stderr(values: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over one axis.

    Args:
        values: independent repetitions along ``axis``, for example seeds.
        axis: the axis to average over.

    Returns:
        The mean, and s / √n with the sample standard deviation s (n - 1 in its
        denominator); NaN for a single repetition, which says nothing of its error.
    """
    values = np.asarray(values, dtype=float)
    count = values.shape[axis]
    mean = values.mean(axis)
    if count < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, values.std(axis, ddof=1) / np.sqrt(count)


def plus_minus(values: Any, *, unit: str = "", digits: int = 3) -> str:
    """Repetitions [n] as ``"mean ± s.e. unit"``; the error is left out for n = 1.

    ``digits`` counts the significant digits of the mean. The unit ``"%"`` turns
    shares into per cent. A mean that is not finite is "undefined".
    """
    mean, stderr = mean_stderr(np.asarray(values, float) * (100 if unit == "%" else 1))
    if not np.isfinite(mean):
        return "undefined"
    size = np.floor(np.log10(abs(mean))) if mean else 0
    places = int(max(0, digits - 1 - size))
    if places > 6 or abs(mean) >= 1e6:
        texts = [f"{number:.{digits - 1}e}" for number in (mean, stderr)]
    else:
        texts = [f"{number:.{places}f}" for number in (mean, stderr)]
    text = texts[0] if np.isnan(stderr) else " ± ".join(texts)
    return f"{text} {unit}".strip()


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; bars inside the cells are escaped."""
    lines = [list(header), ["---"] * len(header), *rows]
    texts = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in texts) + "\n"
