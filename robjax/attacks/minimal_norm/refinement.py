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
* ρ = 4 u (max(|z_c|, |z_y|) + |margin of x|), with u the machine epsilon of the logits.
  A margin that far from 0 has the same sign in another forward pass.
* τ, how far beyond the boundary d leads, begins at 3 ρ, in the first three rounds and
  again in the others. A failure makes it three times as large.

On a linear model these thirteen rounds find the minimal distance, up to τ, wherever the
walk ended. The authors' codes have none of this.
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
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.samples import mask_samples, per_sample

CLASSES = 10
"""How many classes, y among them, the first rounds choose from."""

_AIMED = 3  # rounds towards the chosen class
_ROUNDS = 10  # rounds after them
_ROUNDINGS = 4  # ρ, in roundings of the logits
_BEYOND = 3.0  # τ, in units of ρ


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
            return jnp.sum(f), (f.astype(x.dtype), fixed)

        w, (f, logits) = lowering.fast(jax.grad(total, has_aux=True))(v)
        return f, lowering.stored(w), logits

    def attempt(carry):
        i, part, beyond, found = carry  # part is p, beyond is τ / ρ
        v = found.x_adv
        aiming = i < aimed
        f, w, logits = linearise(v, aiming)
        f = f - search.confidence - beyond * _rounding(logits, y, found)
        goal = jnp.clip(x + shift_to(f, w, v, x, ball, bounds), *bounds)
        candidate = jnp.clip(v + per_sample(part, x) * (goal - v), *bounds)
        # the whole way without rounding, which might lead back over the boundary
        candidate = jnp.where(mask_samples(part == 1, x), goal, candidate)
        logits = judge(candidate)
        sure = search._replace(
            confidence=search.confidence + _rounding(logits, y, found)
        )
        after = sure.note(found, candidate, logits, steps + i + 1, passes=2)
        nearer = after.distance < found.distance
        part = jnp.where(nearer | aiming, jnp.minimum(2 * part, 1), part / 2)
        beyond = jnp.where(nearer, beyond, 3 * beyond)
        beyond = jnp.where(i + 1 == aimed, _BEYOND, beyond)
        return i + 1, part, beyond, after

    part = jnp.ones_like(found.loss)
    beyond = jnp.full_like(found.loss, _BEYOND)
    return search.repeat(aimed + _ROUNDS, attempt, part, beyond, found)[-1]


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


def _rounding(logits: jax.Array, y: jax.Array, found: Found) -> jax.Array:
    """ρ [B], how far a margin must be from 0 for its sign to be no accident."""
    c = likely_wrong_classes(logits, y, 1)[0]
    both = jnp.take_along_axis(logits, jnp.stack([c, y], axis=1), axis=1)
    # both may be small as sums of large terms, which have made up the margin of x
    size = jnp.max(jnp.abs(both), axis=1) + jnp.abs(found.clean_loss)
    return _ROUNDINGS * jnp.finfo(logits.dtype).eps * size.astype(found.loss.dtype)
