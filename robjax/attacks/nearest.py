"""What all minimal-norm attacks share: the record, the loop, the last refinements.

They search for the misclassified image nearest to x; ε only decides what counts as
success. Whatever the walk of an attack was, `refine` then linearises f = z_c − z_y at
the best point v, where c is the class that v is taken for, and tries

    v + p (x + d − v),    d the shortest shift from x to {f = κ + τ} ∩ box

p is 1, and after failures 1/2, 1/4, …; κ is the confidence that an attack asks for,
usually 0. A candidate must be nearer than v, with a margin of at least κ + ρ: 4
roundings of |z_c| or |z_y| and of the margin of x, so that another forward pass agrees.
τ is 3 ρ, and three times as large after each failure. Ten rounds of this come after
three that take for c the class whose boundary is nearest to x inside the box, of y and
the nine likeliest others. On a linear model they find the minimal distance, up to τ,
wherever the walk ended. The authors' codes have none of this.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, losses, lowering
from robjax.attacks import ascent, hyperplanes
from robjax.attacks.ascent import AttackResult, Problem, per_sample_mask
from robjax.balls import per_sample

CLASSES = 10
_AIMED = 3
_REFINEMENTS = 10
_ROUNDINGS = 4
_BEYOND = 3.0
_MISSED = 1e-3


class Nearest(NamedTuple):
    """The nearest misclassified image so far, and what it took to find it."""

    x_adv: jax.Array
    distance: jax.Array
    loss: jax.Array
    clean_loss: jax.Array
    first_success: jax.Array
    queries: jax.Array


class Search(NamedTuple):
    """A search for the nearest image that the model takes for another class than y.

    Attributes:
      problem: model, images, ball and bounds.
      y: [B] labels.
      enough: distance from which on a sample stays as it is; scalar or [B].
      confidence: margin κ ≥ 0 with which an image must be misclassified.
    """

    problem: Problem
    y: jax.Array
    enough: jax.Array
    confidence: Any = 0.0

    @classmethod
    def begin(
        cls, problem: Problem, y: jax.Array, *, early_exit: bool, confidence: Any = 0.0
    ) -> tuple["Search", Nearest]:
        """The search and its empty record; x must be the first point it is given."""
        x, eps = problem.x, problem.ball.eps
        low = jnp.full(y.shape, -jnp.inf, x.dtype)
        none = jnp.full(y.shape, -1, jnp.int32)
        nearest = Nearest(x, -low, low, low, none, jnp.zeros_like(none))
        # an image at distance 0 cannot be improved; nor need one that counts already
        enough = eps if early_exit else jnp.zeros_like(eps)
        return cls(problem, y, enough, confidence), nearest

    def wrong(self, logits: jax.Array) -> jax.Array:
        """[B] bool, whether these are the logits of a misclassified image."""
        unsure = losses.margin(logits, self.y) < self.confidence  # false for NaN
        return losses.misclassified(logits, self.y) & ~unsure

    def note(
        self, nearest: Nearest, v: jax.Array, logits: jax.Array, count: Any, passes=1
    ) -> Nearest:
        """Takes in an evaluated point, the result of `count` steps.

        passes: how many images were evaluated since the last point.
        """
        _, x, ball, _ = self.problem
        distance = ball.norm(v - x)
        open_ = nearest.distance > self.enough
        better = open_ & self.wrong(logits) & (distance < nearest.distance)
        first = better & (distance <= ball.eps) & (nearest.first_success < 0)
        loss = losses.margin(logits, self.y).astype(x.dtype)
        return Nearest(
            jnp.where(per_sample_mask(better, x), v, nearest.x_adv),
            jnp.where(better, distance, nearest.distance),
            jnp.where(better, loss, nearest.loss),
            jnp.where(nearest.queries == 0, loss, nearest.clean_loss),
            jnp.where(first, count, nearest.first_success),
            nearest.queries + passes * open_,
        )

    def repeat(self, count: Any, body: Callable[..., Any], *state: Any) -> Any:
        """Runs body((i, *state)) until i = count or no sample is open; state last."""

        def unfinished(carry):
            return (carry[0] < count) & (carry[-1].distance > self.enough).any()

        return lax.while_loop(unfinished, body, (jnp.int32(0), *state))

    def length(self, v: jax.Array, t: jax.Array, f: jax.Array, w: jax.Array):
        """[B] from t to where f + ⟨w, · − v⟩ = 0 inside the box; infinite if nowhere.

        The refinements measure from t = x, DeepFool from the iterate t = v.
        """
        _, _, ball, bounds = self.problem
        d = shift(f, w, t, v, ball, bounds)
        excess = f + _inner(w, t - v)
        # the shift in L0 may lead beyond the boundary
        left = jnp.sign(excess) * (excess + _inner(w, d))
        return jnp.where(left > _MISSED * jnp.abs(excess), jnp.inf, ball.norm(d))

    def result(self, nearest: Nearest) -> AttackResult:
        """The nearest image where it lies inside the ball, else x."""
        x = self.problem.x
        success = nearest.distance <= self.problem.ball.eps
        return AttackResult(
            jnp.where(per_sample_mask(success, x), nearest.x_adv, x),
            success,
            jnp.where(success, nearest.loss, nearest.clean_loss),
            nearest.first_success,
            nearest.distance,
            nearest.queries,
        )


def check(
    logits_fn: Any, x: Any, y: Any, ball: Any, bounds: Any, kinds: tuple[type, ...]
) -> tuple[Problem, jax.Array, int]:
    """Returns what an attack for balls of these kinds works on, and the classes K."""
    problem = ascent.check(logits_fn, x, ball, bounds, kinds)
    num_classes = inputs.count_classes(problem.logits_fn, problem.x)
    y = inputs.check_labels(y, problem.x.shape[0], num_classes=num_classes)
    return problem, y, num_classes


def check_numbers(dtype: Any, **numbers: Any) -> dict[str, jax.Array]:
    """Returns numbers ≥ 0 as arrays, so that another value compiles nothing anew."""
    return {
        name: jnp.asarray(inputs.check_number(name, value, minimum=0), dtype)
        for name, value in numbers.items()
    }


def cosine(time: Any, first: Any, last: Any) -> jax.Array:
    """From `first` at time 0 to `last` at time 1 along half a cosine."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * time)) / 2


def refine(
    search: Search, nearest: Nearest, *, steps: Any, classes: int = CLASSES
) -> Nearest:
    """Moves the best point of a walk of `steps` steps nearer to x, or leaves it.

    classes: how many classes, y and the likeliest others, the first rounds consider;
      1: there are no such rounds. A round costs one gradient and one forward pass, the
      choice a gradient for each wrong class on one forward pass.
    """
    (logits_fn, x, ball, bounds), y = search.problem, search.y
    judge, chosen, aimed = lowering.exact(logits_fn), jnp.zeros_like(y), 0
    if classes > 1:
        v = nearest.x_adv
        aimed, length = _AIMED, functools.partial(search.length, v, x)
        chosen = nearest_boundary(logits_fn, y, v, classes, length)[3]
        open_ = nearest.distance > search.enough
        nearest = nearest._replace(queries=nearest.queries + open_)

    def towards(v, aiming):
        def total(v):
            logits = logits_fn(v)
            fixed = lax.stop_gradient(logits)
            found = likely_wrong_classes(fixed, y, 1)[0]
            f = difference(logits, jnp.where(aiming, chosen, found), y)
            return jnp.sum(f), (f.astype(x.dtype), fixed)

        return lowering.fast(jax.grad(total, has_aux=True))(v)

    def attempt(carry):
        i, part, beyond, nearest = carry
        v, aiming = nearest.x_adv, i < aimed
        w, (f, logits) = towards(v, aiming)
        w = lowering.stored(w)
        f = f - search.confidence - beyond * _rounding(logits, y, nearest)
        goal = jnp.clip(x + shift(f, w, x, v, ball, bounds), *bounds)
        candidate = jnp.clip(v + per_sample(part, x) * (goal - v), *bounds)
        # the whole way without rounding, which might lead back over the boundary
        candidate = jnp.where(per_sample_mask(part == 1, x), goal, candidate)
        logits = judge(candidate)
        confidence = search.confidence + _rounding(logits, y, nearest)
        sure = search._replace(confidence=confidence)
        found = sure.note(nearest, candidate, logits, steps + i + 1, passes=2)
        nearer = found.distance < nearest.distance
        part = jnp.where(nearer | aiming, jnp.minimum(2 * part, 1), part / 2)
        beyond = jnp.where(nearer, beyond, 3 * beyond)
        beyond = jnp.where(i + 1 == aimed, _BEYOND, beyond)
        return i + 1, part, beyond, found

    part, beyond = jnp.ones_like(nearest.loss), jnp.full_like(nearest.loss, _BEYOND)
    rounds = aimed + _REFINEMENTS
    return search.repeat(rounds, attempt, part, beyond, nearest)[-1]


def _rounding(logits: jax.Array, y: jax.Array, nearest: Nearest) -> jax.Array:
    """[B] how far a margin must be from 0 for its sign to be no accident."""
    c = likely_wrong_classes(logits, y, 1)[0]
    both = jnp.take_along_axis(logits, jnp.stack([c, y], axis=1), axis=1)
    # both may be small as sums of large terms, which have made up the margin of x
    size = jnp.max(jnp.abs(both), axis=1) + jnp.abs(nearest.clean_loss)
    return _ROUNDINGS * jnp.finfo(logits.dtype).eps * size.astype(nearest.loss.dtype)


def shift(f, w, t, v, ball, bounds) -> jax.Array:
    """From t [B, *S] to the nearest point where f + ⟨w, · − v⟩ = 0, inside the box."""
    flat_t, flat_w = t.reshape(t.shape[0], -1), w.reshape(t.shape[0], -1)
    excess = f + jnp.sum(flat_w * (t - v).reshape(flat_t.shape), axis=1)
    return hyperplanes.shift(ball, flat_t, flat_w, excess, bounds).reshape(t.shape)


def gradient(value_fn: Callable[[jax.Array], jax.Array], v: jax.Array):
    """Values [B] of a per-sample function and its gradient [B, *S]."""

    def total(v):
        values = value_fn(v)
        return jnp.sum(values), values

    w, f = lowering.fast(jax.grad(total, has_aux=True))(v)
    return f.astype(v.dtype), lowering.stored(w)


def nearest_boundary(
    logits_fn: Any,
    y: jax.Array,
    v: jax.Array,
    classes: int,
    length: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The class c whose boundary, linearised at v, is nearest.

    Args:
      classes: how many are considered: y and those of highest logits at v.
      length: (f [B], w [B, *S]) -> [B], how near a boundary is.

    Returns:
      Logits at v [B, K]; f = z_c − z_y [B], its gradient [B, *S], and c [B].
    """

    def search(v):
        logits, pull_back = jax.vjp(logits_fn, v)
        num_classes = logits.shape[1]
        others = min(classes, num_classes) - 1
        likely = likely_wrong_classes(logits, y, others)

        def consider(rank, best):
            c = likely[rank]
            towards = jax.nn.one_hot(c, num_classes) - jax.nn.one_hot(y, num_classes)
            (w,) = pull_back(towards.astype(logits.dtype))
            w = lowering.stored(w)
            f = difference(logits, c, y).astype(v.dtype)
            distance = length(f, w)
            closer = distance < best[0]
            return (
                jnp.where(closer, distance, best[0]),
                jnp.where(closer, f, best[1]),
                jnp.where(per_sample_mask(closer, v), w, best[2]),
                jnp.where(closer, c, best[3]),
            )

        none = jnp.full(y.shape, jnp.inf, v.dtype)
        best = (none, jnp.zeros_like(none), jnp.zeros_like(v), likely[0])
        return logits, *lax.fori_loop(0, others, consider, best)[1:]

    return lowering.fast(search)(v)


def likely_wrong_classes(logits: jax.Array, y: jax.Array, count: int) -> jax.Array:
    """The `count` classes other than y with the highest logits, [count, B]."""
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), count)[1].T


def difference(logits: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
    """z_c − z_y [B]."""
    both = jnp.take_along_axis(logits, jnp.stack([c, y], axis=1), axis=1)
    return both[:, 0] - both[:, 1]


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)
