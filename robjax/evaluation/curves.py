"""Robust accuracy as a function of the radius ε.

An image that fools the model at a distance of ε lies in every larger ball, too. So an
attack runs from the smallest ε upwards, each time only on the samples that are still
robust. A sample that was broken once stays broken, and the curve can only fall.

A new ε compiles nothing: ε is traced, and the samples left are gathered into batches of
few sizes (`Task.batches`). An attack that looks for the nearest misclassified image
gives the whole curve in one run.

Verdicts are those of `robjax.evaluation`: a fresh forward pass judges the images that
an attack returned, and images outside box or ball do not count.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from robjax.arrays import check_array
from robjax.balls import Ball, Linf
from robjax.boxes import check_box
from robjax.checks import Bounds, check_flags
from robjax.evaluation.attack import Attack, uses_gradients
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import Device
from robjax.evaluation.tables import Estimate
from robjax.evaluation.verdicts import attack_all, check_attack
from robjax.evaluation.warnings import of_task
from robjax.model import LogitsFn
from robjax.samples import is_concrete

_ROWS = 4


class Curve(NamedTuple):
    """Robust accuracy of N samples over a grid of E radii, on the host.

    Attributes:
      epsilons: [E] the radii, increasing.
      broken: [E, N] bool, the sample is misclassified as it is, or somewhere in the
        ball of radius ε; never turns false as ε grows.
      accuracy: [E] share of samples that are not broken.
      stderr: [E] binomial standard error of `accuracy`.
      smallest: [N] the smallest ε of the grid that breaks the sample; inf if none does.
      warnings: reasons to distrust the curve, in words; empty if there are none.
    """

    epsilons: np.ndarray
    broken: np.ndarray
    accuracy: np.ndarray
    stderr: np.ndarray
    smallest: np.ndarray
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Shows the accuracy at a few radii, and the warnings."""
        if not is_concrete(self.accuracy):
            return "Curve(traced)"
        count = len(self.epsilons)
        shown = np.linspace(0, count - 1, min(count, _ROWS)).round().astype(int)
        radii = "1 radius" if count == 1 else f"{count} radii"
        lines = [f"robust accuracy on {len(self.smallest)} images, {radii}"]
        for i in shown:
            rate = Estimate(float(self.accuracy[i]), float(self.stderr[i]))
            lines.append(f"  ε = {self.epsilons[i]:<8.4g} {rate}")
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def robust_accuracy_curve(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    y: jax.Array | np.ndarray,
    attack: Attack,
    *,
    epsilons: ArrayLike | Sequence[float],
    key: jax.Array,
    ball: Callable[[float], Ball] = Linf,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
    batch_size: int | None = None,
    devices: Sequence[Device] | None = None,
    minimal_norm: bool = False,
) -> Curve:
    """Measures robust accuracy under one attack for every ε of a grid.

    The two classes of this model tie where both pixels have moved by half of their
    difference, here 0.1 and 0.4:

    >>> from robjax import attacks
    >>> x = np.array([[0.2, 0.4], [0.1, 0.9]], np.float32)
    >>> robust_accuracy_curve(
    ...     lambda x: x, x, np.array([1, 1]), functools.partial(attacks.pgd, steps=5),
    ...     epsilons=[0.05, 0.15, 0.45], key=jax.random.key(0),
    ... )
    robust accuracy on 2 images, 3 radii
      ε = 0.05     100.00 ± 0.00 %
      ε = 0.15      50.00 ± 35.36 %
      ε = 0.45       0.00 ± 0.00 %

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) -> logits with
        `eot`; any callable (`as_logits_fn`).
      x: [N, *S] images inside `bounds`.
      y: [N] integer labels.
      attack: untargeted, with all its options bound except the ball, for example
        ``partial(pgd, steps=40)``. It is called as attack(logits_fn, x, y, key=, ball=,
        bounds=).
      epsilons: [E] radii ≥ 0, strictly increasing. At 0 no attack runs.
      key: one key, or one for each sample. A sample has the same draws for every ε.
      ball: the kind of ball, a function ε -> Ball: Linf, L2, L1, or for example
        ``partial(L1, density=0.0)``.
      bounds: as in `evaluate`.
      eot: draws over which verdicts on a randomised model are averaged; None: the model
        is deterministic. The attack has an `eot` of its own, to be bound to it.
      batch_size: most images at a time, over all devices together; rounded up to a
        multiple of the device count. By default 64 on a CPU, else 256.
      devices: devices that share each batch; default: all local ones.
      minimal_norm: the attack looks for the nearest misclassified image, whatever ε, as
        `fab` does. Then it runs once, with the largest ε, and the distances of its
        images give the curve.

    Returns:
      Curve.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(minimal_norm=minimal_norm)
    grid = check_epsilons(epsilons)
    checked, bounds = check_box(x, bounds)
    images = np.asarray(checked)
    _check_ball(ball)
    _check_attack(attack)
    task = Task.make(
        logits_fn,
        images,
        y,
        key=key,
        bounds=bounds,
        eot=eot,
        batch_size=batch_size,
        devices=devices,
    )
    largest = ball(float(grid[-1]))
    check_attack("attack", functools.partial(attack, ball=largest), task)
    clean = attack_all(task, None, np.arange(len(images)))
    distances = np.where(clean.fooled, 0, np.inf)
    for epsilon in grid[-1:] if minimal_norm else grid:
        left = np.flatnonzero(np.isinf(distances))
        if epsilon == 0 or not len(left):
            continue
        with_ball = functools.partial(attack, ball=ball(float(epsilon)))
        verdicts = attack_all(task, with_ball, left)
        # a distance may be rounded to more than ε
        reached = np.minimum(verdicts.distance, epsilon) if minimal_norm else epsilon
        distances[left] = np.where(verdicts.fooled, reached, np.inf)
    found = of_task(
        task,
        clean,
        gradients=uses_gradients(attack),
        balls=[] if minimal_norm else [largest],
    )
    return curve_from_distances(distances, grid)._replace(warnings=tuple(found))


def curve_from_distances(
    distances: ArrayLike | Sequence[float], epsilons: ArrayLike | Sequence[float]
) -> Curve:
    """Makes the curve of samples whose distance to a misclassified image is known.

    A sample is broken where its distance is at most ε, exactly.

    >>> curve = curve_from_distances([0.0, 0.2, np.inf, 0.1], [0.1, 0.2])
    >>> curve.accuracy.tolist(), curve.smallest.tolist()
    ([0.5, 0.25], [0.1, 0.2, inf, 0.1])

    Args:
      distances: [N] to the nearest misclassified image that was found, as `fab` returns
        it. 0: the image is misclassified as it is; inf: none was found.
      epsilons: [E] radii ≥ 0, strictly increasing.

    Raises:
      ValueError: a distance is negative or NaN, or `epsilons` is no such grid.
    """
    grid = check_epsilons(epsilons)
    distances = check_array("distances", distances, "[N]", finite=False, low=0)
    distances = np.asarray(distances, np.float64)
    broken = distances[None] <= grid[:, None]
    accuracy = 1 - broken.mean(axis=1)
    return Curve(
        epsilons=grid,
        broken=broken,
        accuracy=accuracy,
        stderr=np.sqrt(accuracy * (1 - accuracy) / len(distances)),
        smallest=np.append(grid, np.inf)[np.searchsorted(grid, distances)],
    )


def check_epsilons(epsilons: object) -> np.ndarray:
    """Checks a grid of radii, and returns it as float64 [E].

    >>> check_epsilons([0, 0.5, 2]).tolist()
    [0.0, 0.5, 2.0]

    Raises:
      ValueError: `epsilons` is not [E], E ≥ 1, of finite numbers ≥ 0 that strictly
        increase.
    """
    checked = check_array("epsilons", epsilons, "[E]", low=0)
    grid = np.asarray(checked, np.float64)
    if (np.diff(grid) <= 0).any():
        raise ValueError(
            f"epsilons must be finite, at least 0 and strictly increasing, got {grid}"
        )
    return grid


def _check_attack(attack: object) -> None:
    if not callable(attack):
        raise ValueError(
            f"attack must be callable, one attack as in functools.partial(pgd, "
            f"steps=40), got {attack!r}"
        )
    if "ball" in (keywords := functools.partial(attack).keywords):
        raise ValueError(
            f"attack must not have a ball of its own, got {keywords['ball']}; name its "
            "kind as ball=Linf"
        )


def _check_ball(ball: object) -> None:
    if not callable(ball) or not hasattr(ball(1.0), "eps"):
        raise ValueError(f"ball must be a kind of ball (Linf, L2 or L1), got {ball!r}")
