"""Average distance to a changed prediction, on the scale of what should not matter.

Wang, Gao and Qi, "A theoretical framework for robustness of (deep) classifiers against
adversarial samples", ICLR 2017 workshop (arXiv 1612.00334).

    d_i    oracle distance from sample i to the nearest point where the prediction
           changes, inf where none was found; the label plays no part
    δ₂     the distance up to which the oracle sees the same

* Distances that an attack found are upper bounds, so ARC and ARCA are, too: a better
  attack lowers them.
* The oracle's distance is rarely known. Say what stands in for it, such as a norm of
  the input. Distances 0 between different inputs are possible.
* ARC = δ₂ says that no prediction changed within δ₂. It takes the worst point near
  every sample, where "strong-robust" is about pairs drawn at random.

`robjax.theory.feature_spaces` has the exact distances of linear classifiers.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_number, check_range
from robjax.metrics.spurious.groups import Estimate, mean
from robjax.samples import is_concrete


def arc(distances: ArrayLike, delta: ArrayLike) -> Estimate:
    """Average distance to a changed prediction, where more than δ₂ counts as δ₂.

    ARC = mean min(d_i, δ₂), from 0 to δ₂; the paper reports ARC/δ₂, too.

    >>> arc([0.1, 0.3, jnp.inf], 0.2)
    Estimate(0.1667 ± 0.033)

    Args:
      distances: [N] d_i, 0 or more; inf where nothing was found.
      delta: the cap δ₂, positive.

    Returns:
      The mean in the units of the distances, and its standard error over samples.

    Raises:
      ValueError: distances are not [N] or one is negative or NaN, or delta is not a
        positive finite number.
    """
    found = mean(_shares(distances, delta))
    return Estimate(found.value * delta, found.stderr * delta)


def arca(distances: ArrayLike, correct: ArrayLike, delta: ArrayLike) -> Estimate:
    """Accuracy times the average distance to a changed prediction, relative to δ₂.

    ARCA = accuracy · ARC/δ₂, from 0 to the accuracy. Both factors average over all
    samples: a misclassified sample has a distance to a change, as all others.

    >>> arca([0.1, 0.3, jnp.inf], [True, True, False], 0.2)
    Estimate(0.5556 ± 0.24)

    Args:
      distances, delta: as in `arc`.
      correct: [N] whether the label is predicted without an attack, or shares 0 to 1.

    Returns:
      The product. Its standard error is that of its linear change with both means (the
      delta method), which are of the same samples.

    Raises:
      ValueError: as in `arc`, or correct is not [N] numbers from 0 to 1.
    """
    shares = _shares(distances, delta)
    right = jnp.asarray(correct).astype(shares.dtype)
    check_range("correct", right, 0, 1)
    if right.shape != shares.shape:
        raise ValueError(
            f"correct must have the shape of distances, {shares.shape}, got "
            f"{right.shape}"
        )
    accuracy = mean(right).value
    share = mean(shares).value
    return Estimate(accuracy * share, mean(accuracy * shares + share * right).stderr)


def _shares(distances: ArrayLike, delta: ArrayLike) -> jax.Array:
    """min(d_i/δ₂, 1): all 1 give the mean 1 without rounding."""
    check_number("delta", delta)
    if not isinstance(delta, jax.core.Tracer) and not np.asarray(delta) > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    found = jnp.asarray(distances)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"distances must be non-empty [N], got shape {found.shape}")
    if is_concrete(found):
        values = np.asarray(found)
        if not (values >= 0).all():
            raise ValueError(
                f"distances must be 0 or more, inf where nothing was found, got "
                f"{values[~(values >= 0)][:3]}"
            )
    return jnp.minimum(found / delta, 1.0)
