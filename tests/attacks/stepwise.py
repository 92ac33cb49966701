"""The attacks' walks, evaluation by evaluation, to be held against the reference's."""

import jax
import jax.numpy as jnp
import numpy as np

from robjax import losses
from robjax.attacks.apgd import step_rule, step_rule_l1
from robjax.attacks.apgd.attack import begin
from robjax.attacks.apgd.plan import Options, make_plan
from robjax.attacks.minimal_norm.boundary import Boundary
from robjax.attacks.minimal_norm.fab import Constants, approach
from robjax.attacks.problem import check_problem
from robjax.balls import L1
from robjax.samples import per_sample


def apgd_path(
    model, x, start, ball, loss, *, use_start=True, gradients=None, **options
):
    """Points, losses, step sizes and predictions of each evaluation of one run.

    The model's gradients there come last. With `gradients` [E, B, *S] the walk follows
    those instead.
    """
    problem = check_problem(model, x, ball, (0.0, 1.0))
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    all_options = Options(losses.margin, steps=100, **options)
    rule = step_rule_l1 if isinstance(ball, L1) else step_rule
    plan = jax.tree.map(jnp.asarray, make_plan(rule.phases(all_options)))

    def total(v):
        logits = model(v)
        value = loss(logits)
        return jnp.sum(value), (value, jnp.argmax(logits, axis=1))

    @jax.jit
    def run(start):
        given = (start, use_start)
        climb = begin(problem, given, keys, start.dtype, all_options)

        def step(climb, row):
            row, given = row
            own, (value, predicted) = jax.grad(total, has_aux=True)(climb.x)
            g = own if given is None else given
            after = rule.advance(climb, g, value, row, problem, all_options)
            return after, (climb.x, value, after.step_size, predicted, own)

        return jax.lax.scan(step, climb, (plan, gradients))[1]

    return [np.asarray(column) for column in run(start)]


def defined_until(run, name):
    """[E, B] bool: evaluations before a DLR loss whose gradient is rounding noise.

    Once y has fallen to the third place the loss is exactly 1 and its gradient 0.
    """
    if name == "ce":
        return np.ones_like(run.correct)
    noise = np.abs(run.losses - 1) < 1e-9
    return np.cumsum(noise, axis=0) - noise == 0


def fab_path(model, x, y, classes, ball, path, slopes=None):
    """FAB-T towards `classes` [B], from x [B, *S], beside the reference's path.

    `path` [steps + 1, B, *S] holds the reference's iterates. Returns ours after each of
    its steps, taken from the iterate of the reference before it (with its slope, if
    `slopes` are given) and from our own [2, steps, B, *S], and where the margin was no
    rounding error, which would decide about the way back, bool [2, steps, B].
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    constants = Constants(*(jnp.asarray(c, x.dtype) for c in (0.1, 1.05, 0.9)))
    problem = check_problem(model, x, ball, (0.0, 1.0))
    rows = jnp.arange(len(x))

    def total(v):
        logits = model(v)
        f = logits[rows, classes] - logits[rows, y]
        return f.sum(), f

    @jax.jit
    def step(v, slope=None):
        w, f = jax.grad(total, has_aux=True)(v)
        w = w if slope is None else slope
        moved = approach(Boundary(f=f, w=w, c=classes), v, problem, constants)
        margin = losses.margin(model(moved), y)
        back = x + constants.beta * (moved - x)
        moved = jnp.where(per_sample(margin > 0, x), back, moved)
        return moved, jnp.abs(margin) > 1e-6

    walks, clear, v = [], [], x
    for i, before in enumerate(path[:-1]):
        slope = None if slopes is None else jnp.asarray(slopes[i])
        single, clear_single = step(before, slope)
        v, clear_own = step(v)
        walks.append(np.stack([single, v]))
        clear.append(np.stack([clear_single, clear_own]))
    return np.stack(walks, axis=1), np.stack(clear, axis=1)
