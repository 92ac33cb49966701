"""The last steps of every minimal-norm attack: nearer to x, whatever its walk was.

`refine` linearises f = z_c − z_y at the best point v, where c is the class that v is
taken for, and tries

    v + p (x + d − v),    d the shortest shift from x to {f = κ + τ} ∩ box.

* p is 1, and after failures 1/2, 1/4, …
* κ is the confidence that an attack asks for, usually 0.
* A candidate must be nearer than v, with a margin of at least κ + ρ. ρ is 4 roundings
  of |z_c| or |z_y| and of the margin of x, so that another forward pass agrees.
* τ is 3 ρ, and three times as large after each failure.

There are thirteen rounds. The first three take for c the class whose boundary is
nearest to x inside the box, of y and the nine likeliest others; the other ten the class
that v is taken for. On a linear model they find the minimal distance, up to τ, wherever
the walk ended. The authors' codes have none of this.
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

_AIMED = 3
_ROUNDS = 10
_ROUNDINGS = 4
_BEYOND = 3.0


def refine(
    search: Search, found: Found, *, steps: ArrayLike, classes: int = CLASSES
) -> Found:
    """Moves the best point of a walk nearer to x, or leaves it.

    A round costs one gradient and one forward pass. The choice of the first rounds'
    class costs a gradient for each wrong class, on one forward pass.

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
        v = found.x_adv
        length = functools.partial(distance_to, v=v, start=x, ball=ball, bounds=bounds)
        chosen = nearest_boundary(logits_fn, y, v, classes, length)[1].c
        aimed = _AIMED
        open_ = found.distance > search.enough
        found = found._replace(queries=found.queries + open_)

    def slope(v, aiming):
        def total(v):
            logits = logits_fn(v)
            fixed = lax.stop_gradient(logits)
            taken_for = likely_wrong_classes(fixed, y, 1)[0]
            f = logit_difference(logits, jnp.where(aiming, chosen, taken_for), y)
            return jnp.sum(f), (f.astype(x.dtype), fixed)

        w, (f, logits) = lowering.fast(jax.grad(total, has_aux=True))(v)
        return lowering.stored(w), f, logits

    def attempt(carry):
        i, part, beyond, found = carry
        v = found.x_adv
        aiming = i < aimed
        w, f, logits = slope(v, aiming)
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


def _rounding(logits: jax.Array, y: jax.Array, found: Found) -> jax.Array:
    """[B] how far a margin must be from 0 for its sign to be no accident."""
    c = likely_wrong_classes(logits, y, 1)[0]
    both = jnp.take_along_axis(logits, jnp.stack([c, y], axis=1), axis=1)
    # both may be small as sums of large terms, which have made up the margin of x
    size = jnp.max(jnp.abs(both), axis=1) + jnp.abs(found.clean_loss)
    return _ROUNDINGS * jnp.finfo(logits.dtype).eps * size.astype(found.loss.dtype)
