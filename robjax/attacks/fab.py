"""Fast adaptive boundary attack, minimal norm: Croce & Hein, ICML 2020 (1907.02044).

A step linearises the difference f = z_c − z_y of two logits at the iterate x_i,
projects both x_i (shift d_i) and the original x (shift d) onto {f = 0} ∩ box, and goes
a little beyond the boundary, with a bias towards the original:

    x_{i+1} = box( (1−α)(x_i + η d_i) + α (x + η d) ),
    α = min( ‖d_i‖ / (‖d_i‖ + ‖d‖), α_max )

A misclassified x_{i+1} nearer to x than all before is kept, and the walk goes on from
x + β (x_{i+1} − x). Untargeted, c is the class whose linearised boundary is nearest;
FAB-T runs once for each of the T most likely wrong classes c. A step costs one
gradient (untargeted K − 1 of them, on one forward pass) and one forward pass.

Because η and β keep the walk about 1 % away from the boundary, ten refinements follow:
from the best point v towards x + (1 + τ) d, the nearest point to x of the boundary
linearised at v and a little beyond it (τ = 1e-5), all the way or, after failures, 1/2,
1/4, … of it (and τ three times as large). On a linear model the first success has the
minimal distance up to τ. The authors' code has none of this.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax import inputs, losses, lowering
from robjax.attacks import ascent, hyperplanes
from robjax.attacks.ascent import AttackResult, per_sample_mask
from robjax.balls import L1, L2, Ball, Linf, per_sample
from robjax.inputs import Bounds

_TINY = 1e-12
_SMALLEST_SHIFT = 1e-8
_REFINEMENTS = 10


def fab(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array | None = None,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    early_exit: bool = False,
    reference_quirks: bool = False,
) -> AttackResult:
    """The nearest misclassified image that FAB finds, in the norm of `ball`.

    The radius ε plays no part in the search: it decides what counts as success, scales
    random starts, and says with `early_exit` when a sample is done. For the smallest
    distances rather than a verdict, take a large ε.

    Args:
      logits_fn, x, y, bounds: as in `pgd`.
      key: one key, or one for each sample; needed only for restarts > 1.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      steps: n ≥ 1 of each run, static.
      restarts: runs (for each target); the first starts at x, the others within ε/2 of
        it, static.
      targets: FAB-T over that many of the other classes with the highest clean logits
        (at most K − 1 of them); None: untargeted. Static.
      alpha_max: largest bias α towards the original.
      eta: overshoot η ≥ 1.
      beta: backward step β in [0, 1].
      early_exit: freeze a sample at its first success, and stop when all are solved.
      reference_quirks: as the authors' code, without the refinements at the end.

    Returns:
      AttackResult. `distance` is that of the nearest misclassified image found, inside
      the ball or not; infinite if there was none, 0 for an image misclassified as it
      is. `x_adv` is that image where it lies inside the ball (`success`), else x.
      `loss` is the margin max_{i≠y} z_i − z_y at `x_adv`. `first_success` is the first
      step, counted through all runs, that found one inside the ball. `queries` counts
      forward passes: at most 1 + 2 × (steps × runs + 10).

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    problem = ascent.check(logits_fn, x, ball, bounds)
    if not isinstance(ball, Linf | L2 | L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    num_classes = inputs.count_classes(problem.logits_fn, problem.x)
    y = inputs.check_labels(y, x.shape[0], num_classes=num_classes)
    inputs.check_count("steps", steps)
    inputs.check_count("restarts", restarts)
    if targets is not None:
        targets = min(inputs.check_count("targets", targets), num_classes - 1)
    walk = Walk(
        *(
            jnp.asarray(inputs.check_number(name, value, minimum=0), problem.x.dtype)
            for name, value in (("alpha_max", alpha_max), ("eta", eta), ("beta", beta))
        )
    )
    return _fab(
        problem,
        y,
        inputs.sample_keys(key, x.shape[0]) if restarts > 1 else None,
        walk,
        steps=steps,
        restarts=restarts,
        targets=targets,
        early_exit=bool(early_exit),
        refinements=0 if reference_quirks else _REFINEMENTS,
    )


class Walk(NamedTuple):
    """The constants of a step."""

    alpha_max: jax.Array
    eta: jax.Array
    beta: jax.Array


class Nearest(NamedTuple):
    """The nearest misclassified image so far, and what it took to find it."""

    x_adv: jax.Array
    distance: jax.Array
    loss: jax.Array
    first_success: jax.Array
    queries: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("steps", "restarts", "targets", "early_exit", "refinements"),
)
def _fab(problem, y, keys, walk, *, steps, restarts, targets, early_exit, refinements):
    logits_fn, x, ball, bounds = lax.stop_gradient(problem)
    judge = lowering.fast(logits_fn)
    clean = judge(x)
    classes = None if targets is None else _likely_wrong_classes(clean, y, targets)
    runs = restarts * (targets or 1)
    # an image at distance 0 cannot be improved; nor need one that counts already
    enough = ball.eps if early_exit else jnp.zeros_like(ball.eps)

    def note(nearest, candidate, count):
        logits = judge(candidate)
        wrong = jnp.argmax(logits, axis=1) != y
        distance = ball.norm(candidate - x)
        open_ = nearest.distance > enough
        better = open_ & wrong & (distance < nearest.distance)
        first = better & (distance <= ball.eps) & (nearest.first_success < 0)
        nearest = Nearest(
            jnp.where(per_sample_mask(better, x), candidate, nearest.x_adv),
            jnp.where(better, distance, nearest.distance),
            jnp.where(better, losses.margin(logits, y), nearest.loss),
            jnp.where(first, count, nearest.first_success),
            nearest.queries + 2 * open_,
        )
        return nearest, per_sample_mask(wrong, x)

    def step(run, carry):
        i, v, nearest = carry
        c = None if classes is None else classes[run // restarts]
        f, w = _boundary(logits_fn, y, ball, v, c)
        candidate = approach(f, w, v, x, ball, bounds, walk)
        nearest, wrong = note(nearest, candidate, run * steps + i + 1)
        back = x + walk.beta * (candidate - x)
        return i + 1, jnp.where(wrong, back, candidate), nearest

    def refine(carry):
        i, part, beyond, nearest = carry
        v = nearest.x_adv
        f, w = _gradient(lambda v: losses.margin(logits_fn(v), y), v)
        goal = x + per_sample(1 + beyond, x) * _shifts(f, w, x, v, ball, bounds)
        candidate = jnp.clip(v + per_sample(part, x) * (goal - v), *bounds)
        found, _ = note(nearest, candidate, runs * steps + i + 1)
        nearer = found.distance < nearest.distance
        part = jnp.where(nearer, jnp.minimum(2 * part, 1), part / 2)
        return i + 1, part, jnp.where(nearer, beyond, 3 * beyond), found

    def run_once(carry):
        run, nearest = carry
        v = x if keys is None else _start(keys, run, restarts, x, ball, bounds)
        return run + 1, repeat(steps, functools.partial(step, run), v, nearest)[-1]

    def repeat(count, body, *state) -> Any:
        def unfinished(carry):
            return (carry[0] < count) & (carry[-1].distance > enough).any()

        return lax.while_loop(unfinished, body, (jnp.int32(0), *state))

    wrong = jnp.argmax(clean, axis=1) != y
    nearest = Nearest(
        x,
        jnp.where(wrong, 0, jnp.inf).astype(x.dtype),
        losses.margin(clean, y),
        jnp.where(wrong, 0, -1).astype(jnp.int32),
        jnp.ones(y.shape, jnp.int32),
    )
    clean_loss = nearest.loss
    _, nearest = repeat(runs, run_once, nearest)
    if refinements:
        part, beyond = jnp.ones(y.shape, x.dtype), jnp.full(y.shape, 1e-5, x.dtype)
        *_, nearest = repeat(refinements, refine, part, beyond, nearest)
    success = nearest.distance <= ball.eps
    return AttackResult(
        jnp.where(per_sample_mask(success, x), nearest.x_adv, x),
        success,
        jnp.where(success, nearest.loss, clean_loss),
        nearest.first_success,
        nearest.distance,
        nearest.queries,
    )


def approach(
    f: jax.Array,
    w: jax.Array,
    v: jax.Array,
    x: jax.Array,
    ball: Ball,
    bounds: Bounds,
    walk: Walk,
) -> jax.Array:
    """The next iterate from v [B, *S], where the logit difference is f [B], slope w."""
    batch = x.shape[0]
    # both projections at once: half as many passes over the pixels
    twice = functools.partial(jnp.tile, reps=(2,) + (1,) * (x.ndim - 1))
    points = jnp.concatenate([v, x])
    shifts = _shifts(jnp.tile(f, 2), twice(w), points, twice(v), ball, bounds)
    lengths = jnp.maximum(ball.norm(shifts), _SMALLEST_SHIFT)
    alpha = lengths[:batch] / (lengths[:batch] + lengths[batch:])
    alpha = per_sample(jnp.minimum(alpha, walk.alpha_max), x)
    from_v = v + walk.eta * shifts[:batch]
    from_x = x + walk.eta * shifts[batch:]
    return jnp.clip((1 - alpha) * from_v + alpha * from_x, *bounds)


def _shifts(f, w, t, v, ball, bounds) -> jax.Array:
    """From t to the nearest point where f + ⟨w, · − v⟩ = 0, inside the box."""
    flat_t, flat_w = t.reshape(t.shape[0], -1), w.reshape(t.shape[0], -1)
    excess = f + jnp.sum(flat_w * (t - v).reshape(flat_t.shape), axis=1)
    return hyperplanes.shift(ball, flat_t, flat_w, excess, bounds).reshape(t.shape)


def _gradient(value_fn, v):
    """Values [B] of a per-sample function and its gradient [B, *S]."""

    def total(v):
        values = value_fn(v)
        return jnp.sum(values), values

    w, f = lowering.fast(jax.grad(total, has_aux=True))(v)
    return f.astype(v.dtype), w


def _boundary(logits_fn, y, ball, v, target):
    """Returns f = z_c − z_y and its gradient; c is the target or the nearest class."""

    def difference(logits, c):
        return _at(logits, c) - _at(logits, y)

    def nearest(v):
        logits, pull_back = jax.vjp(logits_fn, v)
        num_classes = logits.shape[1]

        def consider(offset, best):
            c = (y + 1 + offset) % num_classes
            towards = jax.nn.one_hot(c, num_classes) - jax.nn.one_hot(y, num_classes)
            (w,) = pull_back(towards.astype(logits.dtype))
            f = difference(logits, c).astype(v.dtype)
            slope = hyperplanes.dual_norm(ball, w.reshape(w.shape[0], -1))
            distance = jnp.abs(f) / (slope + _TINY)
            closer = distance < best[0]
            return (
                jnp.where(closer, distance, best[0]),
                jnp.where(closer, f, best[1]),
                jnp.where(per_sample_mask(closer, v), w, best[2]),
            )

        none = jnp.full(y.shape, jnp.inf, v.dtype)
        best = (none, jnp.zeros_like(none), jnp.zeros_like(v))
        return lax.fori_loop(0, num_classes - 1, consider, best)[1:]

    if target is None:
        return lowering.fast(nearest)(v)
    return _gradient(lambda v: difference(logits_fn(v), target), v)


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def _likely_wrong_classes(logits, y, count):
    """The `count` classes other than y with the highest logits, [count, B]."""
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    others = jnp.where(is_label, -jnp.inf, logits)
    return lax.top_k(others, count)[1].T


def _start(keys, run, restarts, x, ball, bounds):
    """Starts the first run for a target at x, the others at random, ε/2 from it."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, run))(keys)
    draw = jax.random.normal
    if isinstance(ball, Linf):
        draw = functools.partial(jax.random.uniform, minval=-1)
    noise = jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)
    length = per_sample(0.5 * ball.eps / ball.norm(noise), x)
    moved = jnp.clip(x + length * noise, *bounds)
    return jnp.where(run % restarts == 0, x, moved)
