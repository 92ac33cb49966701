"""The last steps of every minimal-norm attack: nearer to x, whatever its walk was.

`refine` works on the best point v of the walk. A round linearises f = z_c − z_y at v
for some class c, and tries

    v + p (x + d − v),    d the shortest shift from x to {f = κ + τ} ∩ box

κ is the confidence that an attack asks for, usually 0. The candidate replaces v if it
is nearer to x and its margin is at least κ + ρ.

* c is, in the first three rounds, the class whose boundary is nearest to x inside the
  box, of the nine likeliest other than y. In the ten rounds after them it is the class
  that v is taken for.
* p, the part of the way, is 1 in the first three rounds. After them a failure halves it
  and a success doubles it, up to 1.
* ρ is `Search.rounding`: a margin that far from 0 has the same sign in another forward
  pass.
* τ, how far beyond the boundary d leads, begins at 1.5 ρ, in the first three rounds and
  again in the others. A failure makes it three times as large.

On a linear model these thirteen rounds find the minimal distance, up to τ, wherever the
walk ended.

Two kinds of samples go through it again, each time after `explore`: those for which
nothing was found, up to ten times, and up to three times those whose gradient was not
finite somewhere, so that it may have hidden the way. The authors' codes have none of
this.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from robjax import lowering
from robjax.attacks.minimal_norm.boundary import (
    distance_to,
    likely_wrong_classes,
    logit_difference,
    nearest_boundary,
    shift_to,
)
from robjax.attacks.minimal_norm.exploration import explore
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.numerics import finite_or_zero
from robjax.samples import flatten_samples, fold_keys, mask_samples, per_sample

CLASSES = 10
"""How many classes, y among them, the first rounds choose from."""

_AIMED = 3  # rounds towards the chosen class
_ROUNDS = 10  # rounds after them
_BEYOND = 1.5  # τ, in units of ρ
_PASSES = 10  # with exploration, for samples without an image
_ROUGH_PASSES = 3  # for those whose gradient was not finite
_CLIMBS = 4  # from random points, in each of them


def refine(
    search: Search, found: Found, *, steps: ArrayLike, classes: int = CLASSES
) -> Found:
    """Moves the best point of a walk nearer to x, or leaves it.

    A round costs one gradient and one forward pass. The choice of the first rounds'
    class costs a gradient for each wrong class, on one forward pass.

    >>> from robjax.attacks.problem import check_problem
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.25, 0.75]])
    >>> problem = check_problem(lambda x: x, x, Linf(1.0), (0.0, 1.0))
    >>> search, found = Search.begin(problem, jnp.array([1]), early_exit=False)
    >>> far = jnp.array([[1.0, 0.0]])
    >>> found = search.note(search.note(found, x, x, 0), far, far, 1)
    >>> refined = refine(search, found, steps=1)
    >>> [round(float(record.distance[0]), 3) for record in (found, refined)]
    [0.75, 0.25]

    Args:
      search: what is searched for.
      found: the record after the walk.
      steps: of the walk; those of the rounds are counted from there.
      classes: how many classes, y and the likeliest others, the first rounds choose
        from. 1: there are no such rounds.
    """
    x = search.problem.x
    # the attack gives the same result in any batch: one key for all samples
    key = jnp.broadcast_to(jax.random.key(0), search.y.shape)

    def again(carry):
        number, lost, found = carry
        mine = search._replace(enough=jnp.where(lost, search.enough, jnp.inf))

        def look_around(found: Found) -> Found:
            keys = fold_keys(key, number)
            return explore(mine, found, keys, climbs=_CLIMBS, steps=steps)

        found = lax.cond(number > 0, look_around, lambda found: found, found)
        found, rough = _rounds(mine, found, steps, classes)
        rough &= number < _ROUGH_PASSES
        return number + 1, lost & (jnp.isinf(found.distance) | rough), found

    def needed(carry):
        number, lost, _ = carry
        return (number <= _PASSES) & lost.any()

    everyone = jnp.ones(x.shape[0], bool)
    return lax.while_loop(needed, again, (jnp.int32(0), everyone, found))[2]


def _rounds(
    search: Search, found: Found, steps: ArrayLike, classes: int
) -> tuple[Found, jax.Array]:
    """The thirteen rounds; and [B] bool, whether a gradient was not finite in them."""
    logits_fn, x, ball, bounds = search.problem
    y = search.y
    judge = lowering.exact(logits_fn)
    chosen = jnp.zeros_like(y)
    aimed = 0
    if classes > 1:
        chosen, found = _choose_class(search, found, classes)
        aimed = _AIMED

    def linearise(v, aiming):
        def total(v):
            logits = logits_fn(v)
            fixed = lax.stop_gradient(logits)
            taken_for = likely_wrong_classes(fixed, y, 1)[0]
            f = logit_difference(logits, jnp.where(aiming, chosen, taken_for), y)
            return jnp.sum(f), f.astype(x.dtype)

        w, f = lowering.fast(jax.grad(total, has_aux=True))(v)
        return finite_or_zero(f), lowering.stored(w)

    def attempt(carry):
        i, part, beyond, rough, found = carry  # part is p, beyond is τ / ρ
        v = found.x_adv
        aiming = i < aimed
        f, w = linearise(v, aiming)
        open_ = found.distance > search.enough
        rough |= open_ & ~jnp.isfinite(flatten_samples(w)).all(axis=1)
        w = finite_or_zero(w)
        f = f - search.confidence - beyond * search.rounding
        goal = jnp.clip(x + shift_to(f, w, v, x, ball, bounds), *bounds)
        candidate = jnp.clip(v + per_sample(part, x) * (goal - v), *bounds)
        # the whole way without rounding, which might lead back over the boundary
        candidate = jnp.where(mask_samples(part == 1, x), goal, candidate)
        after = search.note(found, candidate, judge(candidate), steps + i + 1, passes=2)
        nearer = after.distance < found.distance
        part = jnp.where(nearer | aiming, jnp.minimum(2 * part, 1), part / 2)
        beyond = jnp.where(nearer, beyond, 3 * beyond)
        beyond = jnp.where(i + 1 == aimed, _BEYOND, beyond)
        return i + 1, part, beyond, rough, after

    part = jnp.ones_like(found.loss)
    beyond = jnp.full_like(found.loss, _BEYOND)
    rough = jnp.zeros(y.shape, bool)
    end = search.repeat(aimed + _ROUNDS, attempt, part, beyond, rough, found)
    return end[-1], end[-2]


def _choose_class(
    search: Search, found: Found, classes: int
) -> tuple[jax.Array, Found]:
    """The class [B] whose boundary is nearest to x, as linearised at the best point.

    The record comes back with the forward pass counted.
    """
    logits_fn, x, ball, bounds = search.problem
    v = found.x_adv
    length = functools.partial(distance_to, v=v, start=x, ball=ball, bounds=bounds)
    chosen = nearest_boundary(logits_fn, search.y, v, classes, length)[1].c
    open_ = found.distance > search.enough
    return chosen, found._replace(queries=found.queries + open_)
