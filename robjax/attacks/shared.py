"""One change for many images: ascent of an objective over batches of them.

A change θ, such as a perturbation or a patch, is put on images by a function of its
own. It climbs an objective J over another batch at each of T steps:

    θ_{t+1} = move( θ_t, ∇_θ J( f(put(θ_t, x_1)), f(put(θ_t, x_2)), … ), α_t ),
    α_t = α (1 − t/T)

    J = mean_i min( −log p_i(y_i), cap )       without a target
    J = log mean_i p_i(target)                 with one

The cap is that of Shafahi et al., "Universal adversarial training", AAAI 2020 (arXiv
1811.11304). Without it, the few images whose loss is huge already would
decide the direction. With a target, the mean of log p would leave that to the images
that are farthest from it and cannot be won. Components of the gradient that are not
finite count as 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.attacks.problem import Problem, check_classes
from robjax.checks import check_count, check_number
from robjax.evaluation import Estimate
from robjax.numerics import finite_or_zero
from robjax.samples import fold_keys, sample_keys

_ORDER = 2**32 - 3  # what the key of the order of the images folds in

Put = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(change, x [b, *S], keys [b]) -> changed images [b, *S]."""

Move = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(change, gradient, step size []) -> change, inside what is allowed."""


class Aim(NamedTuple):
    """What a shared change is to reach; made by `check_aim`.

    Attributes:
      y: [N] int32 labels.
      target: [] int32, the class to be reached; None: any wrong one.
      keys: [N].
      cap: [] of the loss without a target.
    """

    y: jax.Array
    target: jax.Array | None
    keys: jax.Array
    cap: jax.Array

    def objective(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        """J, a scalar, of logits [b, K] of images with labels y."""
        if self.target is None:
            return jnp.mean(jnp.minimum(losses.cross_entropy(logits, y), self.cap))
        log_p = -losses.cross_entropy(logits, jnp.full_like(y, self.target))
        return jax.nn.logsumexp(log_p)  # up to a constant

    def reached(self, logits: jax.Array, y: jax.Array) -> jax.Array:
        """[b] bool, whether images with labels y are classified as aimed at."""
        if self.target is None:
            return losses.misclassified(logits, y)
        return ~losses.misclassified(logits, jnp.full_like(y, self.target))


def check_aim(
    problem: Problem,
    y: jax.Array,
    *,
    key: jax.Array,
    target: int | None,
    cap: ArrayLike,
) -> Aim:
    """Checks labels, target, key and cap.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> problem = check_problem(
    ...     lambda x: x, jnp.full((2, 3), 0.5), Linf(0.1), (0.0, 1.0)
    ... )
    >>> key = jax.random.key(0)
    >>> aim = check_aim(problem, jnp.array([0, 1]), key=key, target=2, cap=9)
    >>> aim.reached(jnp.array([[0.0, 1.0, 5.0]]), jnp.array([0])).tolist()
    [True]

    Args:
      problem: made by `check_problem`.
      y, key, target, cap: as in `universal`.

    Raises:
      ValueError: one of them is malformed; the message names it.
    """
    y, num_classes = check_classes(problem, y)
    check_number("cap", cap, minimum=0)
    if target is not None and check_count("target", target, minimum=0) >= num_classes:
        raise ValueError(
            f"target must be a class from 0 to {num_classes - 1}, got {target}"
        )
    return Aim(
        y=y,
        target=None if target is None else jnp.int32(target),
        keys=sample_keys(key, len(y)),
        cap=jnp.asarray(cap, problem.x.dtype),
    )


def climb(
    problem: Problem,
    aim: Aim,
    put: Put,
    move: Move,
    start: jax.Array,
    *,
    step_size: jax.Array,
    steps: int,
    batch_size: int,
) -> jax.Array:
    """Returns the change after the last step; traced, inside a compiled body.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> problem = check_problem(
    ...     lambda x: x, jnp.full((2, 2), 0.5), Linf(0.1), (0.0, 1.0)
    ... )
    >>> aim = check_aim(
    ...     problem, jnp.array([0, 0]), key=jax.random.key(0), target=None, cap=9
    ... )
    >>> climb(
    ...     problem,
    ...     aim,
    ...     lambda change, x, keys: x + change[None],
    ...     lambda change, g, alpha: change + alpha * jnp.sign(g),
    ...     jnp.zeros(2),
    ...     step_size=jnp.float32(0.5),
    ...     steps=2,
    ...     batch_size=2,
    ... ).tolist()  # steps of 0.5 and 0.25
    [-0.75, 0.75]

    Args:
      problem: made by `check_problem`.
      aim: made by `check_aim`.
      put: makes images of a change.
      move: takes a step.
      start: the first change.
      step_size: α.
      steps: T, static.
      batch_size: b, static. Every image is in one batch at most before the order is
        drawn anew.
    """
    count = len(problem.x)
    size = min(batch_size, count)
    order_key = jax.random.fold_in(aim.keys[0], _ORDER)

    def value(change: jax.Array, x: jax.Array, y: jax.Array, keys: jax.Array):
        return aim.objective(problem.logits_fn(put(change, x, keys)), y)

    gradient = lowering.fast(jax.grad(value))

    def step(t: jax.Array, change: jax.Array) -> jax.Array:
        batch = problem.x, aim.y, aim.keys
        if size < count:
            epoch, number = t // (count // size), t % (count // size)
            drawn = jax.random.permutation(jax.random.fold_in(order_key, epoch), count)
            rows = lax.dynamic_slice_in_dim(drawn, number * size, size)
            batch = jax.tree.map(lambda values: values[rows], batch)
        x, y, keys = batch
        g = finite_or_zero(gradient(change, x, y, fold_keys(keys, t)))
        return move(change, g, step_size * (1 - t / steps).astype(step_size.dtype))

    return lax.fori_loop(0, steps, step, start)


def share_of(values: np.ndarray) -> Estimate:
    """The mean of shares [n], one for each image, with its standard error.

    The error is s/√n, with n − 1 in the variance; both are NaN where there is nothing.

    >>> print(share_of(np.array([0.0, 1.0, 1.0, 1.0])))
     75.00 ± 25.00 %
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = values.mean() if count else np.nan
    error = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(float(mean), float(error))
