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

`minimal_distances` finds the d_i in a norm of the input by an attack. Those of linear
classifiers, also to other oracles, are exact in `robjax.theory.feature_spaces`.
"""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax import attacks
from robjax.arrays import REAL, check_array
from robjax.balls import Ball
from robjax.checks import (
    Bounds,
    check_attacked,
    check_bounds,
    check_number,
    check_range,
)
from robjax.metrics.spurious.groups import Estimate, mean
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.samples import check_key, is_concrete


def minimal_distances(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    *,
    ball: Ball,
    key: jax.Array,
    bounds: Bounds = (0.0, 1.0),
    attack: Callable[..., attacks.AttackResult] = attacks.minimal_distance,
) -> jax.Array:
    """How far the nearest point is that an attack finds where the prediction changes.

    The attack leaves f₁(x), not a label. `arc` and `arca` average these distances.

    >>> from robjax.balls import L2
    >>> x = jnp.array([[0.25, 0.75], [0.75, 0.5]])
    >>> found = minimal_distances(
    ...     lambda x: x, x, ball=L2(1.0), key=jax.random.key(0), attack=attacks.ddn
    ... )
    >>> np.asarray(found, float).round(2).tolist()  # to the diagonal
    [0.35, 0.18]

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images inside `bounds`.
      ball: Linf(ε), L2(ε) or L1(ε): the oracle's distance; farther than ε counts as not
        found. The cap δ₂ of `arc` will do.
      key: one key, or one for each sample.
      bounds: lowest and highest pixel value.
      attack: a minimal-norm attack, such as `attacks.fmn`, `ddn` (L2) or `deepfool`.

    Returns:
      [B] distances, inf where none was found. They are upper bounds.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    bounds = check_bounds(bounds)
    x = check_attacked(x, bounds)
    model = as_logits_fn(logits_fn)
    count_classes(model, x)
    check_key(key, len(x))
    if not callable(attack):
        raise ValueError(f"attack must be callable, got {attack!r}")
    y = jnp.argmax(model(x), axis=1)
    found = attack(model, x, y, key=key, ball=ball, bounds=bounds)
    return jnp.where(found.success, found.distance, jnp.inf)


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
    kinds = (jnp.bool_, *REAL)
    right = check_array("correct", correct, "[N]", kinds=kinds, finite=False)
    right = jnp.asarray(right).astype(shares.dtype)
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
    found = jnp.asarray(check_array("distances", distances, "[N]", finite=False))
    if is_concrete(found):
        values = np.asarray(found)
        if not (values >= 0).all():
            raise ValueError(
                f"distances must be 0 or more, inf where nothing was found, got "
                f"{values[~(values >= 0)][:3]}"
            )
    return jnp.minimum(found / delta, 1.0)
