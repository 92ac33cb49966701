"""The last steps towards x where the boundaries of several classes meet.

An image of class t lies on the right side of all boundaries between t and another class
c, f_c = z_t − z_c ≥ 0. The nearest one may lie where two or more of them meet, which
`refinement`, with one hyperplane at a time, does not find. A round linearises the
likeliest boundaries at the best point v, and goes to x + d with

    d = argmin ‖d‖   subject to   a_c(d) = f_c + ⟨∇f_c, x + d − v⟩ ≥ τ,   x + d ∈ box

In L2 d is clip(u) of a sum u = Σ λ_c ∇f_c with weights λ ≥ 0, the clip into the box.
They maximise the dual, Σ λ_c b_c − ⟨d, u⟩ + ½‖d‖², with b_c what ⟨∇f_c, d⟩ must be at
least. It is concave and piecewise quadratic, so Newton's method with a search along the
way finds them. In L∞ bisection finds the smallest box around x that holds an answer. On
linear models one round is exact, up to rounding; in L∞ it may not be where four or more
boundaries meet. L1 is not dealt with.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import lowering
from robjax.attacks.minimal_norm.boundary import likely_wrong_classes, logit_difference
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.balls import L2, Ball
from robjax.boxes import box_rows
from robjax.checks import Bounds
from robjax.model import LogitsFn
from robjax.numerics import finite_or_zero
from robjax.samples import flatten_samples, mask_samples, per_sample

_CLASSES = 9  # whose boundaries are looked at
_ROUNDS = 10
_HALVINGS = 24
_SEARCHES = 2  # by bisection, each of _HALVINGS
_NEWTON = 40  # steps, at most
_SHARES = 4 * 0.5 ** np.arange(20)  # of a step that are tried
_RIDGE = 1e-10
_PRECISION = 1e-5  # of the largest b, how much may be lacking
_BEYOND = 1.5  # τ in units of ρ, as in `refinement`


def approach_class(
    search: Search,
    found: Found,
    model: LogitsFn,
    target: jax.Array,
    *,
    steps: ArrayLike,
) -> Found:
    """Moves the best point of class t nearer to x, or leaves it.

    A round costs a gradient for each of nine classes, on one forward pass, and another
    forward pass.

    Args:
      search: for images that a model of two classes takes for the second, t.
      found: its record so far.
      model: images [B, *S] -> logits [B, K] of all classes.
      target: [B], t.
      steps: the number of steps to note an image with.
    """
    _, x, ball, bounds = search.problem
    judge = lowering.exact(search.problem.logits_fn)
    shape = x.shape

    def linearise(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(model, v)
        num_classes = logits.shape[1]
        count = min(_CLASSES, num_classes - 1)

        def one(c: jax.Array) -> tuple[jax.Array, jax.Array]:
            towards = jax.nn.one_hot(target, num_classes) - jax.nn.one_hot(
                c, num_classes
            )
            (w,) = pull_back(towards.astype(logits.dtype))
            return logit_difference(logits, target, c).astype(v.dtype), w

        f, w = lax.map(one, likely_wrong_classes(logits, target, count))
        return finite_or_zero(f), finite_or_zero(w.reshape(count, len(x), -1))

    def attempt(carry):
        i, part, beyond, found = carry
        v = found.x_adv
        f, w = lowering.fast(linearise)(v)
        w = lowering.stored(w)
        short = (beyond * search.rounding)[None] - f
        need = short + jnp.sum(w * flatten_samples(v - x)[None], axis=2)
        d = shortest(ball, flatten_samples(x), w, need, box_rows(bounds))
        goal = jnp.clip(x + d.reshape(shape), *bounds)
        candidate = jnp.clip(v + per_sample(part, x) * (goal - v), *bounds)
        candidate = jnp.where(mask_samples(part == 1, x), goal, candidate)
        after = search.note(found, candidate, judge(candidate), steps, passes=2)
        nearer = after.distance < found.distance
        part = jnp.where(nearer, jnp.minimum(2 * part, 1), part / 2)
        return i + 1, part, jnp.where(nearer, beyond, 3 * beyond), after

    part = jnp.ones_like(found.loss)
    return search.repeat(_ROUNDS, attempt, part, _BEYOND * part, found)[-1]


class _Spaces(NamedTuple):
    """Half-spaces ⟨w, d⟩ ≥ b, with w [C, B, n] of length 1 and b [C, B]."""

    w: jax.Array
    need: jax.Array


class _Answer(NamedTuple):
    """The shift d [B, n] for weights λ [C, B]; whether it is in all half-spaces [B]."""

    d: jax.Array
    weights: jax.Array
    reached: jax.Array


def shortest(
    ball: Ball, t: jax.Array, w: jax.Array, need: jax.Array, bounds: Bounds
) -> jax.Array:
    """The shortest way from t into several half-spaces, inside the box.

    That is the shift d of least norm with ⟨w_c, d⟩ ≥ b_c for all c and t + d in the
    box; if there is none, one that fails for some c.

    >>> t = jnp.array([[0.5, 0.5]])
    >>> w = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> d = shortest(L2(1.0), t, w, jnp.array([[0.25], [0.125]]), (0.0, 1.0))
    >>> d.round(4).tolist()
    [[0.25, 0.125]]

    Args:
      ball: L2 or Linf; only its norm matters.
      t: [B, n] points inside `bounds`.
      w: [C, B, n] normals.
      need: [C, B], b.
      bounds: lowest and highest value, two numbers or two arrays [B, n].

    Returns:
      [B, n], d.
    """
    size = jnp.sqrt(jnp.sum(w * w, axis=2))
    size = jnp.where(size > 0, size, 1)
    spaces = _Spaces(w / size[..., None], need / size)
    low, high = bounds[0] - t, bounds[1] - t
    shift = _least_squares(spaces, low, high, jnp.zeros_like(need))
    if isinstance(ball, L2):
        return shift.d

    def halve(_: int, carry: tuple[jax.Array, jax.Array, _Answer]):
        least, most, known = carry
        r = (least + most) / 2
        inner = jnp.maximum(low, -r[:, None]), jnp.minimum(high, r[:, None])
        found = _least_squares(spaces, *inner, known.weights)
        return (
            jnp.where(found.reached, least, r),
            jnp.where(found.reached, r, most),
            _Answer(
                d=jnp.where(found.reached[:, None], found.d, known.d),
                weights=jnp.where(found.reached[None], found.weights, known.weights),
                reached=known.reached,
            ),
        )

    def search(_: int, known: _Answer) -> _Answer:
        most = jnp.max(jnp.abs(known.d), axis=1)
        start = (jnp.zeros_like(most), most, known)
        return lax.fori_loop(0, _HALVINGS, halve, start)[-1]

    # rounding may stop Newton's method early, which looks as if a box held no answer
    return lax.fori_loop(0, _SEARCHES, search, shift).d


def _least_squares(
    spaces: _Spaces, low: jax.Array, high: jax.Array, weights: jax.Array
) -> _Answer:
    """The d in [low, high] of least length in all half-spaces, from some weights."""
    w, need = spaces
    allowed = _PRECISION * jnp.abs(need).max(axis=0)

    def total(weights: jax.Array) -> jax.Array:
        return jnp.sum(weights[..., None] * w, axis=0)

    def value(weights: jax.Array) -> jax.Array:
        u = total(weights)
        d = jnp.clip(u, low, high)
        return jnp.sum(weights * need, axis=0) - jnp.sum(d * (u - d / 2), axis=1)

    def lacking(d: jax.Array) -> jax.Array:
        return need - jnp.sum(w * d[None], axis=2)

    def newton(weights: jax.Array) -> jax.Array:
        u = total(weights)
        lack = lacking(jnp.clip(u, low, high))
        moving = (weights > 0) | (lack > 0)
        free = moving[..., None] & ((u > low) & (u < high))[None]
        slopes = jnp.where(free, w, 0)
        curvature = jnp.einsum("cbn,ebn->bce", slopes, slopes)
        curvature += _RIDGE * jnp.eye(len(w), dtype=w.dtype)[None]
        lack = jnp.where(moving, lack, 0).T[..., None]
        return jnp.linalg.solve(curvature, lack)[..., 0].T

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]):
        i, weights, _ = carry
        way = newton(weights)

        def attempt(share: jax.Array) -> tuple[jax.Array, jax.Array]:
            tried = jnp.maximum(weights + share * way, 0)
            return value(tried), tried

        values, tried = lax.map(attempt, jnp.asarray(_SHARES, w.dtype))
        best = jnp.argmax(values, axis=0)[None]
        rises = jnp.take_along_axis(values, best, axis=0)[0] > value(weights)
        chosen = jnp.take_along_axis(tried, best[None], axis=0)[0]
        return i + 1, jnp.where(rises[None], chosen, weights), rises

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, _, rises = carry
        return (i < _NEWTON) & rises.any()

    start = (jnp.int32(0), weights, jnp.ones_like(allowed, bool))
    weights = lax.while_loop(unfinished, step, start)[1]
    d = jnp.clip(total(weights), low, high)
    return _Answer(d, weights, jnp.max(lacking(d), axis=0) <= allowed)
