"""Predictions at the worst point that an oracle takes for the same as x.

    x' with d₂'(x, x') ≤ δ₂, inside the bounds, and f₁(x') ≠ f₁(x)

An attack in a ball around x does not look for it: the set of these x' has no end in the
directions that the oracle ignores. Here the oracle's metric is pulled back to images.
With J = ∂g₂/∂x [M, n], which is A₂ for a linear map, the gradient g of the margin m is
split in two, and each part takes a step of its own:

    ignored   (I − J⁺J) g    free. The step makes up for what m lacks of −m(x), to first
                             order (Polyak's step); the image may end at the bounds
    seen      J⁺J g          steepest in the image space of g₂: s = g₂(x') − g₂(x) moves
                             towards δ₂ argmax_{‖u‖_p ≤ 1} ⟨(J⁺)ᵀg, u⟩

Then r = x' − x becomes the nearest change with this s inside the bounds. That is an
exact projection: r = clip(v − Jᵀλ), whose λ solves M piecewise linear equations, by
Newton's method.

* `Linear`: the change is projected once more in the end, in float64, so that d₂' is
  kept to the rounding of the images. δ₂ = 0 is fine.
* `Features`: J is taken anew at every point, which costs M backward passes of g₂. So
  d₂' is kept to first order, later steps correct earlier ones, and points beyond δ₂ do
  not count. J ignores what is below 1e-3 of its largest singular value.
* `Identity` ignores nothing: the attack is `attacks.apgd` in the ball of the norm.

Everything that is returned as a flip has been verified: the prediction, d₂' and bounds.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from robjax import attacks, losses, lowering
from robjax.checks import (
    Bounds,
    check_attacked,
    check_bounds,
    check_count,
    check_number,
)
from robjax.metrics.finite import finite_samples, warn_not_finite, widened
from robjax.metrics.spurious.groups import Estimate, mean
from robjax.metrics.strong_robustness.oracles import (
    Features,
    Identity,
    Linear,
    ball_of,
    check_oracle,
    difference,
    oracle_distance,
)
from robjax.metrics.strong_robustness.projection import nearest
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import finite_or_zero, map_batched
from robjax.samples import flatten_samples, is_concrete, sample_keys, select_samples
from robjax.traced import TracedCallable

_RANK = 1e-3  # relative singular values of a Jacobian, computed in float32
_INSIDE = 0.999  # of δ₂ is aimed at where the map is not linear
_ROUNDS = 20  # of the projection after each step
_LOOSE = 1e-4  # of ‖A₂‖: d₂' may be missed by it before the last projection


class WorstCase(NamedTuple):
    """What was found inside the oracle's ball around B images.

    Attributes:
      x_adv: [B, *S] where f₁ differs; x itself where no such point was found.
      success: [B] bool, whether one was found.
      distance: [B] d₂' from x, at most δ₂ + tolerance.
      label: int32 [B] what f₁ says there.
    """

    x_adv: jax.Array
    success: jax.Array
    distance: jax.Array
    label: jax.Array

    @property
    def agreement(self) -> Estimate:
        """The share of images where no flip was found, an upper bound; ± s.e."""
        return mean(1.0 - self.success)

    def __repr__(self) -> str:
        """How many flipped, and how far the oracle saw them move; not the arrays."""
        if not (is_concrete(self.success) and is_concrete(self.distance)):
            return "WorstCase(traced)"
        success = np.asarray(self.success)
        text = f"{success.sum()} of {success.size} flipped"
        if success.any():
            text += f" within d₂' = {np.asarray(self.distance)[success].max():.2g}"
        return f"WorstCase({text})"


class _Best(NamedTuple):
    """The point of highest margin so far that counts, r = 0 where there is none."""

    r: jax.Array  # [B, n]
    margin: jax.Array  # [B]


class _View(NamedTuple):
    """g₂ near a point: J by an orthonormal basis of its rows, and J⁺; and s = Δg₂."""

    basis: jax.Array  # [R, n] or [B, R, n]
    inverse: jax.Array  # [n, M] or [B, n, M]
    s: jax.Array  # [B, M]


def worst_case_agreement(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    *,
    oracle: Any,
    delta: ArrayLike,
    key: jax.Array,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 50,
    tolerance: float = 1e-6,
    batch_size: int = 256,
) -> WorstCase:
    """Looks for a changed prediction where the oracle sees no more than δ₂ of change.

    This is the worst case of `pair_agreement`, which draws pairs at random. The attack
    may fail where a flip exists, so `agreement` is an upper bound. On linear models
    without active bounds the first step is exact at δ₂ = 0.

    A classifier that uses the second pixel a little, and an oracle that ignores it:

    >>> from robjax.metrics.strong_robustness import linear
    >>> def score(x):
    ...     s = (x[:, 0] - 0.5) + 0.5 * (x[:, 1] - 0.5)
    ...     return jnp.stack([-s, s], axis=1)
    >>> x = jnp.array([[0.6, 0.5], [0.9, 0.5]])
    >>> worst_case_agreement(
    ...     score, x, oracle=linear([[1.0, 0.0]]), delta=0.0, key=jax.random.key(0)
    ... )
    WorstCase(1 of 2 flipped within d₂' = 0)

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; f₁ is their argmax.
      x: [B, *S] images inside `bounds`.
      oracle: made by `identity`, `linear`, `pca` or `features`; or a function.
      delta: δ₂, 0 or more; a number or [B].
      key: one key, or one for each sample; only `identity` draws.
      bounds: lowest and highest pixel value.
      steps: k ≥ 1, static: k input gradients and 4 forward passes.
      tolerance: what d₂' may exceed δ₂ by, in its unit. Images of float32 round d₂' by
        about 1e-7 ‖A₂‖: if that is more, a flip at δ₂ = 0 does not count.
      batch_size: images per chunk, bounds the memory: 2Mn numbers per image.

    Returns:
      WorstCase.

    Raises:
      ValueError: an argument is malformed, or inside `jax.jit`, where nothing can be
        verified.
    """
    bounds = check_bounds(bounds)
    x = check_attacked(x, bounds)
    if not is_concrete(x):
        raise ValueError("x must have values, got a tracer: call this outside jax.jit")
    model = as_logits_fn(logits_fn)
    count_classes(model, x)
    oracle = check_oracle(oracle, x)
    check_number("delta", delta, minimum=0, batch_size=len(x))
    check_number("tolerance", tolerance, minimum=0)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    keys = sample_keys(key, len(x))
    delta = jnp.broadcast_to(jnp.asarray(delta, x.dtype), (len(x),))
    before, known = _predict(model, x, batch_size)
    warn_not_finite(
        logits=known, gradients=jnp.ones_like(known), then="they count as not flipped"
    )
    if isinstance(oracle, Identity):
        ball = ball_of(oracle, delta)
        found = attacks.apgd(
            model, x, before, key=keys, ball=ball, bounds=bounds, steps=steps
        ).x_adv
    else:
        r = _attack(model, oracle, x, delta, bounds, tolerance, steps, batch_size)
        found = _moved(x, r, oracle, delta, bounds, tolerance, batch_size)
    after, known_after = _predict(model, found, batch_size)
    distance = oracle_distance(oracle, x, found).astype(x.dtype)
    changed = (after != before) & known & known_after
    success = changed & (distance <= delta + tolerance)
    x_adv, after, distance = select_samples(
        success, (found, after, distance), (x, before, jnp.zeros_like(distance))
    )
    return WorstCase(x_adv, success, distance, after)


@functools.partial(jax.jit, static_argnums=2)
def _predict(
    model: TracedCallable, x: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """The labels, and whether the logits are finite."""

    def label(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = lowering.exact(model)(x)
        return jnp.argmax(logits, axis=1).astype(jnp.int32), finite_samples(logits)

    return map_batched(label, x, batch_size)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _attack(
    model: TracedCallable,
    oracle: Linear | Features,
    x: jax.Array,
    delta: jax.Array,
    bounds: Bounds,
    tolerance: jax.Array,
    steps: int,
    batch_size: int,
) -> jax.Array:
    """The best change r [B, n] that k steps find."""
    search = functools.partial(
        _search, model, oracle, bounds=bounds, tolerance=tolerance, steps=steps
    )
    # exact, or the change would leave the set of equal g₂ by its rounding
    exact = lowering.exact(search, forward=False)
    return map_batched(lambda rows: exact(*rows), (x, delta), batch_size)


def _search(
    model: TracedCallable,
    oracle: Linear | Features,
    x: jax.Array,
    delta: jax.Array,
    *,
    bounds: Bounds,
    tolerance: jax.Array,
    steps: int,
) -> jax.Array:
    low = flatten_samples(bounds[0] - x)
    high = flatten_samples(bounds[1] - x)
    linear_map = isinstance(oracle, Linear)
    slack = tolerance
    if linear_map:
        slack = slack + _LOOSE * jnp.linalg.norm(jnp.asarray(oracle.matrix, x.dtype))

    def images(r: jax.Array) -> jax.Array:
        return jnp.clip(x + r.reshape(x.shape), *bounds)

    logits = widened(model(x))
    y = jnp.argmax(logits, axis=1)
    clean = losses.margin(logits, y)
    goal = -clean + 1e-3 * (jnp.max(logits, 1) - jnp.min(logits, 1))

    def total(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        margin = losses.margin(widened(model(v)), y)
        return jnp.sum(margin), margin

    slope = jax.grad(total, has_aux=True)
    of_map: Any = None if linear_map else 0  # one map is not copied for each image
    over_samples = jax.vmap(
        functools.partial(_move, oracle=oracle),
        in_axes=(0, 0, 0, 0, 0, 0, _View(of_map, of_map, s=cast(Any, 0))),
    )

    def look(r: jax.Array) -> tuple[_View, jax.Array]:
        view = _view(oracle, x, images(r))
        return view, ball_of(oracle, delta).norm(view.s)

    def note(best: _Best, r: jax.Array, margin: jax.Array, d: jax.Array) -> _Best:
        counts = (margin > 0) & (d <= delta + slack) & (margin > best.margin)
        return select_samples(counts, _Best(r, margin), best)

    def step(i: jax.Array, carry: tuple[jax.Array, _Best]) -> tuple[jax.Array, _Best]:
        r, best = carry
        g, margin = slope(images(r))
        view, d = look(r)
        best = note(best, r, margin, d)
        g = flatten_samples(finite_or_zero(g)).astype(r.dtype)
        left = jnp.broadcast_to(1 - i / steps, delta.shape).astype(r.dtype)
        lacks = jnp.maximum(goal - margin, 0)
        r = over_samples(r, g, lacks, jnp.stack([delta, left], 1), low, high, view)
        return r, best

    r = jnp.zeros_like(low)
    best = _Best(r, jnp.full_like(clean, -jnp.inf))
    r, best = lax.fori_loop(0, steps, step, (r, best))
    last = losses.margin(widened(model(images(r))), y)
    return note(best, r, last, look(r)[1]).r


def _view(oracle: Linear | Features, x: jax.Array, v: jax.Array) -> _View:
    """The map at the images v [B, *S], seen from x."""
    s = difference(oracle, x, v)
    if isinstance(oracle, Linear):
        basis, inverse = (
            jnp.asarray(each).astype(v.dtype) for each in (oracle.basis, oracle.inverse)
        )
        return _View(basis=basis, inverse=inverse, s=s)
    jacobian = jacobian_of(oracle, v)

    def split(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, values, right = jnp.linalg.svd(j, full_matrices=False)
        kept = values > _RANK * values[0]
        right = jnp.where(kept[:, None], right, 0)
        return right, (right.T / jnp.where(kept, values, 1)[None]) @ left.T

    basis, inverse = jax.vmap(split)(jacobian)
    return _View(basis=basis, inverse=inverse, s=s)


def jacobian_of(oracle: Features, x: jax.Array) -> jax.Array:
    """∂g₂/∂x [B, M, n] by M backward passes; what is not finite counts as 0.

    >>> from robjax.metrics.strong_robustness import features
    >>> jacobian_of(features(lambda x: x[:, :1] ** 2), jnp.ones((1, 2))).tolist()
    [[[2.0, 0.0]]]
    """
    seen, pull = jax.vjp(oracle, x)

    def row(unit: jax.Array) -> jax.Array:
        (gradient,) = pull(jnp.broadcast_to(unit[None], seen.shape))
        return flatten_samples(finite_or_zero(gradient))

    rows = lax.map(row, jnp.eye(seen.shape[1], dtype=seen.dtype))
    return jnp.moveaxis(rows, 0, 1)


def _move(
    r: jax.Array,
    g: jax.Array,
    lacks: jax.Array,
    plan: jax.Array,
    low: jax.Array,
    high: jax.Array,
    view: _View,
    *,
    oracle: Linear | Features,
) -> jax.Array:
    """The next change of one image.

    Args:
      r: [n] the present change.
      g: [n] gradient of the margin there.
      lacks: what the margin lacks of its goal.
      plan: [2] δ₂, and the share of the steps that is left, by which they shrink.
      low, high: [n] what the bounds leave.
      view: the map there.
      oracle: for its norm.
    """
    basis, inverse, s = view
    delta, left = plan
    inside = delta if isinstance(oracle, Linear) else _INSIDE * delta
    zero = jnp.zeros_like(s)[None]
    everywhere = (-jnp.inf, jnp.inf)
    pulled = g @ inverse
    steepest = ball_of(oracle, 1.0).steepest(pulled[None], zero, everywhere)[0]
    ahead = s + left * delta * steepest
    s_next = ball_of(oracle, inside).project(ahead[None], zero, everywhere)[0]
    seen = inverse @ (s_next - s)

    ignored = g
    for _ in range(2):  # once leaves its rounding in the row space
        ignored = ignored - (basis @ ignored) @ basis
    energy = jnp.sum(ignored * ignored)
    rounding = 100 * jnp.finfo(g.dtype).eps
    used = energy > rounding**2 * jnp.sum(g * g)
    length = jnp.maximum(lacks - pulled @ (s_next - s), 0) / jnp.where(used, energy, 1)
    # at first no farther than the box is wide; near a stationary point, or on the way
    # back to a curved set of equal g₂, Polyak's step would be far too long
    width = left**2 * jnp.max(high - low)
    farthest = width / jnp.sqrt(jnp.where(used, energy, 1))
    free = jnp.where(used, jnp.minimum(length, farthest), 0) * ignored
    target = basis @ (r + seen)
    return nearest(r + seen + free, target, basis, low, high, rounds=_ROUNDS)


def _moved(
    x: jax.Array,
    r: jax.Array,
    oracle: Linear | Features,
    delta: jax.Array,
    bounds: Bounds,
    tolerance: float,
    batch_size: int,
) -> jax.Array:
    """x + r inside the bounds; for linear maps r is projected in float64 first."""
    if isinstance(oracle, Features):
        return jnp.clip(x + r.reshape(x.shape), *bounds)
    given = [np.asarray(each, float) for each in (x, r, delta, tolerance)]
    with jax.enable_x64(True):
        exact = np.asarray(_polish(oracle, *given, bounds, batch_size))
    return jnp.clip(jnp.asarray(exact.astype(x.dtype)), *bounds)


@functools.partial(jax.jit, static_argnums=6)
def _polish(
    oracle: Linear,
    x: jax.Array,
    r: jax.Array,
    delta: jax.Array,
    tolerance: jax.Array,
    bounds: Bounds,
    batch_size: int,
) -> jax.Array:
    """The images at the nearest change to r that keeps δ₂ and the bounds."""

    def polish(rows: tuple[jax.Array, ...]) -> jax.Array:
        x, r, delta = rows
        flat = flatten_samples(x)
        s = r @ oracle.matrix.T
        d = ball_of(oracle, delta).norm(s)
        shrink = jnp.minimum(1, delta / jnp.where(d > 0, d, 1))[:, None]
        target = (shrink * s) @ oracle.inverse.T @ oracle.basis.T
        r = jax.vmap(
            lambda *each: nearest(*each, rounds=200), in_axes=(0, 0, None, 0, 0)
        )(r, target, oracle.basis, bounds[0] - flat, bounds[1] - flat)
        d = ball_of(oracle, delta).norm(r @ oracle.matrix.T)
        # what the rounds left is far below the tolerance; shorter, it may not flip
        most = delta + jnp.maximum(tolerance / 2, 1e-9)
        shrink = jnp.minimum(1, most / jnp.maximum(d, most))[:, None]
        return (flat + shrink * r).reshape(x.shape)

    return map_batched(polish, (x, r, delta), batch_size)
