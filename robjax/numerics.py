"""Numerics that stay accurate in float32: KL divergence, norms; thresholds, chunks.

Notation: logits z, z' [..., K]; p = softmax z, q = softmax z';
u = (z' - z) - E_p[z' - z], the centred change of the logits.

The textbook sum p (log p - log q) subtracts nearly equal numbers: in float32 its
relative error is 1.6e-2, 0.2 and 6.4 at logit changes of 1e-2, 1e-3 and 1e-4. Since
E_p[u] = 0, exactly

    KL(p || q) = log E_p[e^u] = log1p(E_p[e^u - 1 - u]),

a sum of non-negative terms that loses nothing when u is small.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Above this KL the log-softmax form loses nothing, and below it e^u cannot overflow.
SMALL_KL = 0.25


def exp_remainder(u: jax.Array, order: int) -> jax.Array:
    """e^u minus its Taylor polynomial below `order`, by the series, for |u| <= 1.

    Args:
        u: any shape, |u| <= 1 (beyond, the series is truncated too early).
        order: first power kept: 2 gives e^u - 1 - u, 3 also takes off u^2 / 2.

    Returns:
        Same shape as `u`, relative error at rounding level.
    """
    last = order + (18 if u.dtype == jnp.float64 else 10)
    series = jnp.ones_like(u)
    for n in range(last, order, -1):
        series = 1 + series * u / n
    return series * u**order / math.factorial(order)


def centre(values: jax.Array, probabilities: jax.Array, axis: int = -1) -> jax.Array:
    """`values` minus their mean under `probabilities`, also for large common shifts.

    The probabilities sum to 1 up to rounding only, so one subtraction leaves an error
    of one rounding of the *shift*; the second one removes it.
    """
    rough = jnp.sum(probabilities * values, axis, keepdims=True)
    shifted = values - jax.lax.stop_gradient(rough)
    return shifted - jnp.sum(probabilities * shifted, axis, keepdims=True)


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded a − b and exactly what the rounding lost (Knuth's two-sum).

    Large common parts of the logits hide in the rounding, and KL does not see them.
    """
    difference = a - b
    minus_b = difference - a
    lost = (a - (difference - minus_b)) - (b + minus_b)
    return difference, jax.lax.stop_gradient(lost)


def kl_from_logits(
    logits_p: jax.Array, logits_q: jax.Array, axis: int = -1
) -> jax.Array:
    """D_KL(softmax(logits_p) || softmax(logits_q)), in nats.

    Relative error at most 1e-4 in float32 from logit changes of 1e-5 to saturation;
    gradients of every order are finite for all finite logits, also at equality.

    Args:
        logits_p: [..., K] finite logits of the reference distribution.
        logits_q: logits of the other one; shapes broadcast.
        axis: the class axis.

    Returns:
        The broadcast shape without the class axis; at least float32.
    """
    dtype = jnp.promote_types(jnp.result_type(logits_p, logits_q), jnp.float32)
    logits_p, logits_q = jnp.asarray(logits_p, dtype), jnp.asarray(logits_q, dtype)
    log_p = jax.nn.log_softmax(logits_p, axis)
    log_q = jax.nn.log_softmax(logits_q, axis)
    p = jnp.exp(log_p)
    direct = jnp.sum(p * (log_p - log_q), axis, keepdims=True)
    small = jax.lax.stop_gradient(direct) < SMALL_KL
    change, lost = _difference(logits_q, logits_p)
    u = centre(change, p, axis) + centre(lost, p, axis)
    # p e^u = q e^KL; the right-hand side neither overflows nor loses tiny p.
    p_exp_u = jnp.exp(jnp.where(small, log_q + direct, 0))
    near = small & (jnp.abs(u) < 1)
    terms = jnp.where(
        near,
        p * exp_remainder(jnp.where(near, u, 0), 2),
        p_exp_u - p * (1 + jnp.where(small, u, 0)),
    )
    excess = jnp.sum(jnp.where(small, terms, 0), axis, keepdims=True)
    return jnp.squeeze(jnp.where(small, jnp.log1p(excess), direct), axis)


def safe_norm(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Euclidean norm over `axis` whose gradient at 0 is 0, not NaN."""
    square = jnp.sum(x * x, axis)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def threshold(
    values: jax.Array, total: Callable[[jax.Array], jax.Array], budget: Any
) -> jax.Array:
    """The least τ of `values` for which total(values > τ) is at most `budget`.

    So with a count for `total` and k - 1 for `budget` the k-th largest value. Bisection
    on the bits of the floats: on a CPU 10 to 40 times faster than sorting.

    Args:
        values: [B, n] floats, none of them NaN.
        total: a set [B, n] of bool -> [B, 1]; no smaller for a larger set.
        budget: scalar or [B, 1].

    Returns:
        [B, 1]; the largest value if even the empty set is too much.
    """
    integers = jnp.iinfo(f"int{jnp.finfo(values.dtype).bits}")

    def reorder(code):
        # read as integers, floats below 0 are in falling order
        return jnp.where(code < 0, code ^ integers.max, code)

    code = reorder(jax.lax.bitcast_convert_type(values, integers.dtype))

    def halve(_, bracket):
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        too_much = total(code > middle) > budget
        return jnp.where(too_much, middle + 1, low), jnp.where(too_much, high, middle)

    low, high = (f(code, axis=1, keepdims=True) for f in (jnp.min, jnp.max))
    _, high = jax.lax.fori_loop(0, integers.bits, halve, (low, high))
    return jax.lax.bitcast_convert_type(reorder(high), values.dtype)


def count(chosen: jax.Array) -> jax.Array:
    """How many of a set [B, n] of bool there are, [B, 1]; a `total` of `threshold`."""
    return jnp.sum(chosen, axis=1, keepdims=True, dtype=jnp.int32)


def chosen_sum(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Sum [B, 1] of those of `values` [B, n] that are chosen; a `total` too.

    >>> chosen_sum(jnp.array([[1.0, 2.0]]), jnp.array([[False, True]])).tolist()
    [[2.0]]
    """
    return jnp.sum(jnp.where(chosen, values, 0), axis=1, keepdims=True)


def spend_largest(size, room, cost, budget) -> jax.Array:
    """Spends the room [B, n] of pixels in the order of falling `size` ≥ 0 [B, n].

    The room of a pixel has a `cost` ≥ 0 [B, n], and all that is spent costs `budget`
    [B, 1] at most; of the last pixels, of equal size, all spend the same share.
    """
    total = functools.partial(chosen_sum, cost)
    least = threshold(size, total, budget)
    above = size > least
    at = size == least
    available = total(at)
    share = (budget - total(above)) / jnp.where(available > 0, available, 1)
    share = jnp.minimum(share, 1)
    return jnp.where(above, room, jnp.where(at, share * room, 0))


def map_batched(
    fn: Callable[[Any], Any], xs: Any, batch_size: int, *, unroll: int = 1
) -> Any:
    """`fn` over chunks of the leading axis, to bound memory; works under jit.

    Args:
        fn: maps arrays [b, ...] to arrays [b, ...], each row on its own.
        xs: array or pytree of arrays [B, ...], B >= 1.
        batch_size: rows per chunk; the last chunk is padded with copies of the last
            row, so that one compiled body serves every chunk.
        unroll: chunks that the compiled loop handles in one go.

    Returns:
        What `fn(xs)` returns.
    """
    size = jax.tree.leaves(xs)[0].shape[0]
    if size <= batch_size:
        return fn(xs)
    chunks = -(-size // batch_size)
    rows = jnp.minimum(jnp.arange(chunks * batch_size), size - 1)
    rows = rows.reshape(chunks, batch_size)

    def step(_, row):
        return None, fn(jax.tree.map(lambda a: a[row], xs))

    _, out = jax.lax.scan(step, None, rows, unroll=unroll)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:size], out)
