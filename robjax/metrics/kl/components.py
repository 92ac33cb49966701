"""The KL divergence between a model's outputs at pairs of images, and its parts."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax import lowering
from robjax.arrays import check_array
from robjax.checks import check_labels
from robjax.metrics.finite import (
    check_measured,
    finite_samples,
    measure_again,
    warn_not_finite,
)
from robjax.metrics.fisher import logits_and_jacobian
from robjax.metrics.kl.split import KLComponents, split_kl
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import finite_or_zero, map_batched
from robjax.traced import TracedCallable

# Pairs per pass on a CPU, where activations that stay in the cache halve the time.
_CPU_CHUNK = 32
# Passes per turn of the loop, so that XLA can overlap them.
_CPU_UNROLL = 4


class Measured(NamedTuple):
    """The parts of B pairs, and what of them is finite, [B].

    Attributes:
      parts: KLComponents.
      logits: whether those at x are.
      logits_prime: whether those at x′ are.
      gradients: whether the input gradients at x are, as far as Δ goes along them.
    """

    parts: KLComponents
    logits: jax.Array
    logits_prime: jax.Array
    gradients: jax.Array


def kl_components(
    logits_fn: LogitsFn, x: jax.Array, x_prime: jax.Array
) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|x′)) pair by pair; see `robjax.metrics.kl.split`.

    Costs one `jax.jvp` at x and one forward pass at x′: three forward passes.

    A component of an input gradient that is not finite counts as 0. Pairs where that
    happens cost K backward passes more; inside `jax.jit` their parts stay NaN.

    Source: arXiv 1906.02494, section 3 (fisher and the remainder); the split of the
    remainder is this library's.

    From p = (½, ½) to (¾, ¼) the divergence is ½ log 4/3, and ½ Var[v] = ⅛ (log 3)²:

    >>> x = jnp.zeros((1, 2))
    >>> parts = kl_components(lambda x: x, x, x.at[0, 0].set(jnp.log(3)))
    >>> print(f"{parts.total[0]:.3f} {parts.fisher[0]:.3f} {parts.softmax[0]:.3f}")
    0.144 0.151 -0.007
    >>> parts.network.tolist()  # the network is linear
    [0.0]

    That 0 has digits down to 1e-6, as the logits in float32 have:

    >>> f"{parts.rounding.network[0]:.0e}"
    '1e-06'

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] reference images.
      x_prime: [B, *S] images compared with them.

    Returns:
      KLComponents of arrays [B], with the error of each by rounding.

    Raises:
      ValueError: an image array is not floating or not finite, shapes differ, or
        `logits_fn` gives no logits.

    Warns:
      UserWarning: the logits of some pairs are not finite, and their parts NaN; or
        their input gradients are not.
    """
    x, x_prime = _check_pair(x, x_prime)
    found = measure_pairs(checked_model(logits_fn, x), x, x_prime)
    _warn(found, "pairs")
    return found.parts


def checked_model(logits_fn: LogitsFn, x: jax.Array) -> TracedCallable:
    """The model with traced weights, once it is known to give logits for images x.

    >>> checked_model(lambda x: x, jnp.ones((2, 3)))(jnp.ones((1, 3))).shape
    (1, 3)

    Raises:
      ValueError: it gives none; as in `count_classes`.
    """
    model = as_logits_fn(logits_fn)
    count_classes(model, x)
    return model


def _warn(found: Measured, what: str) -> None:
    known = found.logits & found.logits_prime
    warn_not_finite(logits=known, gradients=found.gradients, what=what, stacklevel=4)


def _check_pair(x: object, x_prime: object) -> tuple[jax.Array, jax.Array]:
    x = check_measured(x)
    x_prime = check_measured(x_prime, name="x_prime")
    if x_prime.shape != x.shape:
        raise ValueError(
            f"x_prime must have the shape of x, {x.shape}, got {x_prime.shape}"
        )
    dtype = jnp.promote_types(x.dtype, x_prime.dtype)
    return x.astype(dtype), x_prime.astype(dtype)


def kl_path(
    logits_fn: LogitsFn, x: jax.Array, x_prime: jax.Array, times: ArrayLike
) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|x + tΔ)), Δ = x′ − x, for several t.

    The Fisher part is t² times that of `kl_components`. Where the robust parts take
    over, the second order has ceased to describe the network. Costs one `jax.jvp` at x
    and one forward pass for each t.

    >>> x = jnp.zeros((1, 2))
    >>> path = kl_path(lambda x: x, x, x.at[0, 0].set(1.0), jnp.array([0.5, 1.0]))
    >>> bool(jnp.allclose(path.fisher[0], path.fisher[1] / 4))
    True

    Args:
      logits_fn, x, x_prime: as in `kl_components`.
      times: [T] values of t, in [0, 1] between x and x′.

    Returns:
      KLComponents of arrays [T, B].

    Raises:
      ValueError: as in `kl_components`, or `times` not a finite vector.

    Warns:
      UserWarning: as in `kl_components`.
    """
    x, x_prime = _check_pair(x, x_prime)
    times = jnp.asarray(check_array("times", times, "[T]"), x.dtype)
    measure = functools.partial(_kl_path, checked_model(logits_fn, x), times=times)
    found = _measured(measure, x, x_prime)
    _warn(found, "pairs")
    return found.parts


@functools.partial(jax.jit, static_argnames="by_gradients")
def _kl_path(
    logits_fn: TracedCallable,
    x: jax.Array,
    x_prime: jax.Array,
    *,
    times: jax.Array,
    by_gradients: bool,
) -> Measured:
    def path(x, x_prime):
        delta = x_prime - x
        logits, change = _linearised(logits_fn, x, delta, by_gradients)

        def at(t):
            there = logits_fn(x + t * delta)
            return split_kl(logits, t * change, there), finite_samples(there)

        parts, known = jax.lax.map(at, times)
        return Measured(
            parts, finite_samples(logits), known.all(0), finite_samples(change)
        )

    return lowering.exact(path)(x, x_prime)


def kl_to_class_means(logits_fn: LogitsFn, x: jax.Array, y: ArrayLike) -> KLComponents:
    """Splits D_KL(p(·|x) ‖ p(·|μ_c)) for the mean image μ_c of every class c.

    Costs three forward passes for each class that has images.

    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> parts = kl_to_class_means(lambda x: x, x, jnp.array([0, 2]))
    >>> np.asarray(parts.total, float).round(2).tolist()  # class 1 has no image
    [[0.0, nan, 0.12], [0.11, nan, 0.0]]

    Args:
      logits_fn, x: as in `kl_components`; the means are those of x itself.
      y: [B] integer labels.

    Returns:
      KLComponents of arrays [B, C], C the highest label + 1; NaN for a class without
      images.

    Raises:
      ValueError: images not floating or not finite, labels not integer or not [B], or
        `logits_fn` gives no logits.

    Warns:
      UserWarning: as in `kl_components`.
    """
    x = check_measured(x)
    labels = np.asarray(check_labels(y, x.shape[0]))
    model = checked_model(logits_fn, x)
    columns = {}
    for c in np.unique(labels):
        mean = jnp.mean(x[labels == c], axis=0, keepdims=True)
        columns[c] = measure_pairs(model, x, jnp.broadcast_to(mean, x.shape))
    first = columns[labels[0]]
    missing = jax.tree.map(lambda part: jnp.full_like(part, jnp.nan), first.parts)
    known = [
        jnp.stack(each).all(0)
        for each in zip(*(c[1:] for c in columns.values()), strict=True)
    ]
    _warn(Measured(first.parts, *known), "images")
    every = [
        columns[c].parts if c in columns else missing for c in range(labels.max() + 1)
    ]
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *every)


def measure_pairs(
    logits_fn: TracedCallable, x: jax.Array, x_prime: jax.Array
) -> Measured:
    """What `kl_components` returns, without its checks and warnings.

    >>> x = jnp.zeros((1, 2))
    >>> found = measure_pairs(as_logits_fn(lambda x: x), x, x + jnp.nan)
    >>> found.logits.tolist(), found.logits_prime.tolist()
    ([True], [False])
    """
    return _measured(functools.partial(_kl_components, logits_fn), x, x_prime)


def _measured(
    measure: Callable[..., Measured], x: jax.Array, x_prime: jax.Array
) -> Measured:
    """What `measure` finds; by input gradients where a jvp is not finite."""
    found = measure(x, x_prime, by_gradients=False)
    parts = measure_again(
        found.parts,
        logits=found.logits,
        gradients=found.gradients,
        measure=lambda rows: measure(x[rows], x_prime[rows], by_gradients=True).parts,
        axis=-1,
    )
    return found._replace(parts=parts)


@functools.partial(jax.jit, static_argnames="by_gradients")
def _kl_components(
    logits_fn: TracedCallable,
    x: jax.Array,
    x_prime: jax.Array,
    *,
    by_gradients: bool,
) -> Measured:
    def logits_and_change(x, x_prime):
        z, change = _linearised(logits_fn, x, x_prime - x, by_gradients)
        return z, change, logits_fn(x_prime)

    # a function without derivatives: a tangent runs through the layers as values do
    exact = lowering.exact(logits_and_change)
    chunk = _CPU_CHUNK if jax.default_backend() == "cpu" else x.shape[0]
    logits, change, logits_prime = map_batched(
        lambda pair: exact(*pair), (x, x_prime), chunk, unroll=_CPU_UNROLL
    )
    known = map(finite_samples, (logits, logits_prime, change))
    return Measured(split_kl(logits, change, logits_prime), *known)


def _linearised(
    logits_fn: TracedCallable, x: jax.Array, delta: jax.Array, by_gradients: bool
) -> tuple[jax.Array, jax.Array]:
    """z(x) and v = JΔ; `by_gradients`: without components of J that are not finite."""
    if not by_gradients:
        return jax.jvp(logits_fn, (x,), (delta,))
    logits, jacobian = logits_and_jacobian(logits_fn, x)
    delta = delta.reshape(len(x), -1)
    change = jnp.einsum(
        "bkd,bd->bk", finite_or_zero(jacobian), delta, precision="highest"
    )
    return logits, change
