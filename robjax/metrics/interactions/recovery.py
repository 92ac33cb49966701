"""Can an attack be undone by another attack?

Ren et al., arXiv 2103.07364, supplement, table 3: after an untargeted attack on x, a
targeted attack of the same strength leads from x_adv back to the label. Is its result x̂
nearer to x than x_adv is? For robust networks it is, for standard networks not.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from robjax import attacks
from robjax.attacks.problem import check_problem
from robjax.balls import Ball
from robjax.checks import Bounds
from robjax.model import LogitsFn
from robjax.numerics import safe_norm
from robjax.samples import flatten_samples, is_concrete


class Recovery(NamedTuple):
    """Both attacks on each of B images.

    Attributes:
      x_adv: [B, *S] where the first attack ended.
      x_back: [B, *S] x̂, where the second one ended.
      fooled: [B] bool, x_adv is misclassified.
      returned: [B] bool, x̂ is classified as y.
      attacked_distance: [B] ‖x − x_adv‖₂.
      returned_distance: [B] ‖x − x̂‖₂.
    """

    x_adv: jax.Array
    x_back: jax.Array
    fooled: jax.Array
    returned: jax.Array
    attacked_distance: jax.Array
    returned_distance: jax.Array

    def __repr__(self) -> str:
        """Mean distances; not the arrays."""
        if not all(map(is_concrete, self[2:])):
            return "Recovery(traced)"
        there, back = (np.mean(distance) for distance in self[4:])
        return (
            f"Recovery({np.size(self.fooled)} images, {there:.4g} away when attacked, "
            f"{back:.4g} when led back)"
        )


def recoverability(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 10,
    step_size: ArrayLike | None = None,
) -> Recovery:
    """Attacks every image by PGD, and leads it back to its label by PGD.

    Both run all their steps from where they begin, and their last point counts. The
    second one moves in a ball of the same size around x_adv.

    The logits are the pixels. The way back undoes the way there:

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.5]])
    >>> recoverability(lambda x: x, x, jnp.array([0]), ball=Linf(0.25), steps=2)
    Recovery(1 images, 0.08839 away when attacked, 0 when led back)

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      ball: Linf(ε), L2(ε) or L1(ε).
      bounds: lowest and highest pixel value.
      steps: of each attack, static.
      step_size: a number or [B]; by default ε/8, as in the paper.

    Raises:
      ValueError: as in `robjax.attacks.pgd`.
    """
    if step_size is None:
        problem = check_problem(logits_fn, x, ball, bounds)
        step_size = problem.ball.eps / 8

    def attack(start: jax.Array, targeted: bool) -> attacks.AttackResult:
        return attacks.pgd(
            logits_fn,
            start,
            y,
            ball=ball,
            bounds=bounds,
            steps=steps,
            step_size=step_size,
            random_start=False,
            keep_best=False,
            targeted=targeted,
        )

    there = attack(x, targeted=False)
    back = attack(there.x_adv, targeted=True)
    away, left = (
        safe_norm(flatten_samples(end - x), axis=1) for end in (there.x_adv, back.x_adv)
    )
    return Recovery(
        x_adv=there.x_adv,
        x_back=back.x_adv,
        fooled=there.success,
        returned=back.success,
        attacked_distance=away,
        returned_distance=left,
    )
