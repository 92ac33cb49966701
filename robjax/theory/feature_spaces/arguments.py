"""The arguments, checked."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import as_array, check_array


def rounding(a: np.ndarray) -> float:
    """The rounding unit of the dtype; that of float64 for integers.

    >>> rounding(np.ones(2, np.float32)) == 2.0**-23
    True
    """
    floating = jnp.issubdtype(a.dtype, jnp.floating)
    return float(jnp.finfo(a.dtype if floating else np.dtype(float)).eps)


def normalised(a: np.ndarray) -> tuple[np.ndarray, int]:
    """The array in float64 with its largest entry in [½, 1), and the power of 2 taken.

    Then products neither overflow nor underflow, and nothing is rounded.

    >>> normalised(np.array([6.0, 0.0]))
    (array([0.75, 0.  ]), 3)
    """
    values = a.astype(float)
    exponent = int(np.frexp(np.abs(values).max())[1])
    return np.ldexp(values, -exponent), exponent


def check_points(x: ArrayLike, d: int) -> np.ndarray:
    """Points [B, d] in float64.

    >>> check_points([[1, 2]], 2).dtype.name
    'float64'
    """
    points = np.asarray(check_array("x", x, "[B, d]"), float)
    if points.shape[1] != d:
        raise ValueError(f"x must have shape [B, {d}], got {points.shape}")
    return points


def check_positive_or_inf(name: str, value: ArrayLike, *, zero: bool = False) -> None:
    """Checks numbers that are positive, or at least 0 with `zero`; inf is allowed.

    >>> check_positive_or_inf("delta", [1.0, np.inf])
    """
    numbers = as_array(value)
    if not (
        numbers is not None
        and numbers.dtype.kind in "fiu"
        and numbers.size
        and (numbers >= 0 if zero else numbers > 0).all()
    ):
        allowed = "0 or more" if zero else "positive"
        raise ValueError(f"{name} must be {allowed}, inf allowed, got {value!r}")
