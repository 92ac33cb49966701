"""The arguments of a problem, checked."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import as_array
from robjax.checks import check_number, check_range

DUAL = {1: jnp.inf, 2: 2, jnp.inf: 1}
"""The norm q of the weights that belongs to the norm p of the attack."""


class Problem(NamedTuple):
    """A problem in float64 on the host: Σ [d, d], w* [d], σ and the norm p."""

    covariance: np.ndarray
    w_star: np.ndarray
    noise: float
    norm: float


def check_norm(norm: Any) -> float:
    """Checks the norm of the attack.

    >>> check_norm(2)
    2
    """
    if not (isinstance(norm, int | float) and norm in DUAL):
        raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
    return norm


def check_vector(name: str, value: Any, d: int | None = None) -> Any:
    """Checks finite numbers [d]; d is any if None.

    >>> check_vector("w", [1.0, 2.0], 2)
    array([1., 2.])
    """
    value = check_range(name, value)
    shape = np.shape(value)
    if len(shape) != 1 or d not in (None, shape[0]):
        wanted = "[d]" if d is None else f"({d},), as w_star has"
        raise ValueError(f"{name} must have shape {wanted}, got {shape}")
    return value


def check_covariance(value: Any, d: int) -> Any:
    """Checks a symmetric matrix [d, d] without negative eigenvalues.

    The test is one of the correlations, so that no scale of a feature hides another.
    Its tolerance is a few hundred roundings of the type of the matrix.

    >>> check_covariance(np.eye(2), 2).shape
    (2, 2)
    """
    value = check_range("covariance", value)
    if np.shape(value) != (d, d):
        raise ValueError(
            f"covariance must have shape ({d}, {d}), for w_star of shape ({d},), got "
            f"{np.shape(value)}"
        )
    if isinstance(value, jax.core.Tracer):
        return value
    matrix = np.asarray(value)
    half = 4 if matrix.dtype.kind == "f" and matrix.dtype.itemsize < 8 else 8
    tolerance = 100 * d * np.finfo(np.dtype(f"f{half}")).eps
    matrix = matrix.astype(float)
    variance = np.diag(matrix)
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    correlation = matrix / scale / scale[:, None]
    if np.abs(correlation - correlation.T).max() > tolerance:
        raise ValueError(
            f"covariance must be symmetric, got entries that differ by "
            f"{np.abs(matrix - matrix.T).max():.3g} from the transposed ones"
        )
    lowest = np.linalg.eigvalsh(correlation)[0]
    if lowest < -tolerance:
        raise ValueError(
            "covariance must have no negative eigenvalue, got correlations with the "
            f"eigenvalue {lowest:.3g}"
        )
    return value


def check_problem(
    covariance: ArrayLike, w_star: ArrayLike, noise: ArrayLike, norm: float
) -> Problem:
    """Checks a problem and brings it to the host.

    >>> check_problem([[2.0]], [1.0], 0.5, 2).noise
    0.5
    """
    check_vector("w_star", w_star)
    target = np.asarray(w_star, float)
    matrix = np.asarray(check_covariance(covariance, len(target)), float)
    sigma = float(check_number("noise", noise, minimum=0))  # pyright: ignore
    return Problem((matrix + matrix.T) / 2, target, sigma, check_norm(norm))


def check_core(core: Any, d: int) -> np.ndarray:
    """Checks which features are core: a mask [d] with both kinds.

    >>> check_core([True, False], 2).tolist()
    [True, False]
    """
    mask = as_array(core)
    mask = np.zeros(0) if mask is None else np.asarray(mask)
    if mask.dtype != bool or mask.shape != (d,) or mask.all() or not mask.any():
        raise ValueError(
            f"core must be {d} booleans, some True (core) and some False (spurious), "
            f"got {core!r}"
        )
    return mask


def check_levels(name: str, value: ArrayLike) -> np.ndarray:
    """Checks numbers [m], none negative.

    >>> check_levels("eps", [0, 1]).tolist()
    [0.0, 1.0]
    """
    levels = np.asarray(check_range(name, value, 0), float)
    if levels.ndim != 1:
        raise ValueError(f"{name} must have shape [m], got {levels.shape}")
    return levels
