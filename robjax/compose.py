"""Models made of models, and of steps that come before them.

    ensemble           several models as one
    mean_probability   how their logits are combined: the mean of probabilities
    mean_logit         or the mean of logits
    bpda               a step without a useful derivative gets that of another function

What they give back is a model or a step like any other: attacks, evaluations and
metrics take it.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from robjax.checks import check_range
from robjax.model import LogitsFn, as_logits_fn
from robjax.samples import fold_keys, is_concrete


def mean_probability(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """Logs of the mean probabilities: what an ensemble predicts that averages them.

        z = log Σ_m w_m softmax(z_m)

    >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
    >>> z = mean_probability(logits, jnp.array([0.5, 0.5]))
    >>> round(float(jnp.exp(z[0, 0])), 2)
    0.6

    Args:
      logits: [M, B, K].
      weights: [M], adding up to 1.
    """
    return jax.nn.logsumexp(
        jax.nn.log_softmax(logits), axis=0, b=weights[:, None, None]
    )


def mean_logit(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean logits, or up to a constant the mean log-probabilities.

        z = Σ_m w_m z_m

    Dong et al., CVPR 2018 (arXiv 1710.06081), found that attacks on it transfer best.

    >>> logits = jnp.array([[[4.0, 0.0]], [[0.0, 2.0]]])
    >>> mean_logit(logits, jnp.array([0.5, 0.5])).tolist()
    [[2.0, 1.0]]

    Args:
      logits: [M, B, K].
      weights: [M], adding up to 1.
    """
    return jnp.sum(weights[:, None, None] * logits, axis=0)


def ensemble(
    models: Sequence[LogitsFn],
    *,
    weights: ArrayLike | None = None,
    combine: Callable[[jax.Array, jax.Array], jax.Array] = mean_probability,
) -> LogitsFn:
    """Makes one model of several, so that every attack attacks them together.

    The gradient is that of the combined logits. New weights, of the members or of the
    ensemble, compile nothing.

    >>> sure, unsure = (lambda x: 8 * x), (lambda x: -x)
    >>> both = ensemble([sure, unsure])
    >>> z = both(jnp.array([[1.0, 0.0]]))
    >>> round(float(jax.nn.softmax(z)[0, 0]), 2)  # (0.9997 + 0.2689) / 2
    0.63

    Args:
      models: M ≥ 1 models of the same classes; randomised ones, which take (images,
        keys), get keys of their own.
      weights: [M], at least 0 with a positive sum, which is divided out; None: all the
        same. They are traced.
      combine: (logits [M, B, K], weights [M] that add up to 1) -> logits [B, K];
        `mean_probability` or `mean_logit`.

    Returns:
      A model.

    Raises:
      ValueError: there is no model, `weights` do not fit, or `combine` is no function.
        Called, the model raises one if the members have different classes.
    """
    if not isinstance(models, list | tuple) or not models:
        raise ValueError(
            "models must be a list of at least one model, got "
            f"{type(models).__name__}: write ensemble([first, second])"
        )
    count = len(models)
    shares = jnp.asarray(np.ones(count, np.float32) if weights is None else weights)
    check_range("weights", shares, 0)
    if shares.shape != (count,):
        raise ValueError(
            f"weights must have shape ({count},), one for each model, got "
            f"{shares.shape}"
        )
    if is_concrete(shares) and not math.fsum(np.asarray(shares)) > 0:
        raise ValueError(f"weights must have a positive sum, got {weights}")
    if not callable(combine):
        raise ValueError(
            "combine must be a function (logits, weights) -> logits, as "
            f"compose.mean_logit, got {combine!r}"
        )
    members = tuple(map(as_logits_fn, models))
    return Partial(_combined, combine, members, shares)


def _combined(
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    members: tuple[LogitsFn, ...],
    weights: jax.Array,
    x: jax.Array,
    *keys: jax.Array,
) -> jax.Array:
    outputs = [
        member(x, *(fold_keys(own, number) for own in keys))
        for number, member in enumerate(members)
    ]
    shapes = [jnp.shape(logits) for logits in outputs]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"models of an ensemble must have the same classes, got logits {shapes}"
        )
    logits = jnp.stack(outputs)
    shares = (weights / jnp.sum(weights)).astype(logits.dtype)
    return combine(logits, shares)


def bpda(
    forward: Callable[[jax.Array], jax.Array],
    backward: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """Gives a step with no useful derivative that of another function.

        f(x) = forward(x),   ∂f/∂x := ∂backward/∂x

    For preprocessing such as rounding, JPEG or a look-up, through which no gradient
    passes: with ``step = bpda(round)`` attack ``lambda x: network(step(x))``. BPDA is
    the backward pass differentiable approximation of Athalye et al., ICML 2018, section
    4.1. It is only as good as `backward` is near `forward`; the default, the identity,
    fits steps that give back nearly the same image.

    >>> levels = bpda(lambda x: jnp.round(4 * x) / 4)
    >>> value, slope = jax.value_and_grad(lambda x: levels(x) ** 2)(0.7)
    >>> float(value), float(slope)  # 0.75², 2 · 0.75
    (0.5625, 1.5)

    Args:
      forward: arrays to arrays, also code outside JAX under `jax.pure_callback`. It is
        never differentiated, and neither is what it holds, such as weights.
      backward: of the same shapes, differentiable; None: the identity.

    Returns:
      A function for jit, vmap, jvp and vjp. It raises a ValueError where the two give
      other shapes.

    Raises:
      ValueError: one of the two is not callable.
    """
    backward = _same if backward is None else backward
    for name, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise ValueError(f"{name} must be a function of an array, got {function!r}")
    return Partial(_stand_in, forward, backward)


def _same(x: jax.Array) -> jax.Array:
    return x


def _stand_in(
    forward: Callable[[jax.Array], jax.Array],
    backward: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> jax.Array:
    x = jnp.asarray(x)
    value = lax.stop_gradient(forward(lax.stop_gradient(x)))
    slope = backward(x)
    if jnp.shape(value) != jnp.shape(slope):
        raise ValueError(
            "forward and backward must give the same shape, got "
            f"{jnp.shape(value)} and {jnp.shape(slope)} for x {x.shape}"
        )
    return _with_slope_of(jnp.asarray(value, slope.dtype), slope)


@jax.custom_jvp
def _with_slope_of(value: jax.Array, other: jax.Array) -> jax.Array:
    """The value of the one array with the derivative of the other."""
    del other
    return value


@_with_slope_of.defjvp
def _slope_of_other(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _with_slope_of(*primals), tangents[1]
