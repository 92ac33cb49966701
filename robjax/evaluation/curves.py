"""Robust accuracy as a function of the radius ε, for many ε at the price of few.

An image that fools the model at a distance of ε does so in every larger ball. So each
attack runs from the smallest ε upwards, each time on the samples that are still robust,
and a sample broken once is broken for good: the curve falls by construction. ε is
traced and the samples left are gathered into batches whose sizes are powers of two;
nothing compiles for a new ε. Attacks that look for the nearest misclassified image give
the whole curve in one run.

As in `robjax.evaluation`, verdicts come from a fresh forward pass of the images that an
attack returned, and of those inside box and ball only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from robjax.balls import Ball, Linf
from robjax.checks import Bounds, check_bounds, check_images
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task
from robjax.evaluation.verdicts import Verdicts, attack_and_judge
from robjax.model import LogitsFn


class Curve(NamedTuple):
    """Robust accuracy of N samples over a grid of E radii, on the host.

    Attributes:
      epsilons: [E] the radii, increasing.
      broken: [E, N] bool, the sample is misclassified somewhere in the ball of radius ε
        (or as it is); never turns false as ε grows.
      accuracy: [E] share of samples not broken.
      stderr: [E] its binomial standard error.
      smallest: [N] the smallest ε of the grid that breaks the sample, inf if none does.
    """

    epsilons: np.ndarray
    broken: np.ndarray
    accuracy: np.ndarray
    stderr: np.ndarray
    smallest: np.ndarray


def robust_accuracy_curve(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    y: jax.Array | np.ndarray,
    attack: Attack,
    *,
    epsilons: ArrayLike | Sequence[float],
    key: jax.Array,
    ball: Callable[[Any], Ball] = Linf,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    minimal_norm: bool = False,
) -> Curve:
    """Robust accuracy under one attack for every ε of a grid.

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`).
      x: [N, *S] images inside `bounds`.
      y: [N] integer labels.
      attack: with all its options bound except the ball, `partial(pgd, steps=40)`;
        called as attack(logits_fn, x, y, key=, ball=, bounds=). Untargeted.
      epsilons: [E] radii ≥ 0, strictly increasing. At 0 no attack runs.
      key: one key, or one for each sample; a sample has the same draws for every ε.
      ball: the kind of ball, ε -> Ball: Linf, L2, L1 or say partial(L1, density=0.0).
      bounds: lowest and highest pixel value.
      batch_size: most images at a time, over all devices together (rounded up to a
        multiple of them); default: 64 on a CPU, else 256.
      devices: devices that share each batch; default: all local ones.
      minimal_norm: the attack looks for the nearest misclassified image, whatever ε, as
        `fab` does. It runs once, with the largest ε, and the distances make the curve.

    Returns:
      Curve.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    epsilons = check_epsilons(epsilons)
    bounds = check_bounds(bounds)
    images = np.asarray(check_images(x, bounds=bounds))
    _check_attack(attack)
    _check_ball(ball)
    task = Task.make(
        logits_fn,
        images,
        y,
        key=key,
        bounds=bounds,
        batch_size=batch_size,
        devices=devices,
    )
    clean = _run(task, None, np.arange(len(images)))
    distances = np.where(clean.fooled, 0, np.inf)
    for epsilon in epsilons[-1:] if minimal_norm else epsilons:
        left = np.flatnonzero(np.isinf(distances))
        if epsilon == 0 or not len(left):
            continue
        verdicts = _run(
            task, functools.partial(attack, ball=ball(float(epsilon))), left
        )
        reached = verdicts.distance if minimal_norm else epsilon
        distances[left] = np.where(verdicts.fooled, reached, np.inf)
    return curve_from_distances(distances, epsilons)


def curve_from_distances(distances: Any, epsilons: Any) -> Curve:
    """The curve of samples that are misclassified from known distances on.

    Args:
      distances: [N] to the nearest misclassified image found, as `fab` returns it: 0
        where the image is misclassified as it is, inf where none was found.
      epsilons: [E] radii ≥ 0, strictly increasing. A sample is broken where its
        distance is at most ε, exactly.

    Raises:
      ValueError: a distance is negative or NaN, or `epsilons` is no such grid.
    """
    epsilons = check_epsilons(epsilons)
    distances = np.asarray(distances, np.float64)
    if distances.ndim != 1 or not len(distances) or not (distances >= 0).all():
        raise ValueError(
            "distances must be one number of at least 0 for each sample [N], got "
            f"{distances}"
        )
    broken = distances[None] <= epsilons[:, None]
    accuracy = 1 - broken.mean(axis=1)
    stderr = np.sqrt(accuracy * (1 - accuracy) / len(distances))
    smallest = np.append(epsilons, np.inf)[np.searchsorted(epsilons, distances)]
    return Curve(epsilons, broken, accuracy, stderr, smallest)


def check_epsilons(epsilons: Any) -> np.ndarray:
    """The grid as float64 [E]; ValueError unless ≥ 0, finite, strictly increasing."""
    grid = np.asarray(epsilons)
    real = np.issubdtype(grid.dtype, np.number) and not np.iscomplexobj(grid)
    if not real or grid.ndim != 1 or not len(grid):
        raise ValueError(f"epsilons must be numbers [E], E >= 1, got {epsilons!r}")
    grid = grid.astype(np.float64)
    if not np.isfinite(grid).all() or grid[0] < 0 or (np.diff(grid) <= 0).any():
        raise ValueError(
            f"epsilons must be finite, at least 0 and strictly increasing, got {grid}"
        )
    return grid


def _check_attack(attack: Any) -> None:
    if not callable(attack):
        raise ValueError(f"attack must be callable, got {attack!r}")
    keywords = functools.partial(attack).keywords
    if "ball" in keywords:
        raise ValueError(
            f"attack must not have a ball of its own, got {keywords['ball']}; name its "
            "kind as ball=Linf"
        )
    if keywords.get("targeted", False):
        raise ValueError(f"attack must be untargeted, got {attack!r}")


def _check_ball(ball: Any) -> None:
    if not callable(ball) or not hasattr(ball(1.0), "eps"):
        raise ValueError(f"ball must be a kind of ball (Linf, L2 or L1), got {ball!r}")


def _run(task: Task, attack: Any, index: np.ndarray) -> Verdicts:
    """One attack (None: no change) on the samples of `index`, in batches."""
    columns = []
    for batch, real in task.batches(index):
        verdicts, _ = attack_and_judge(task, attack, batch, None)
        columns.append([np.asarray(values)[:real] for values in verdicts])
    return Verdicts(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))
