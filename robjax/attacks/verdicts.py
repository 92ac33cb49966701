"""What one attack did to a batch, and whether it counts.

A verdict never trusts an attack: the image it returned is judged by a fresh forward
pass in the precision of the images (at least float32, on accelerators too), and counts
only

    in the box      exactly
    in the ball     up to 1e-7 max(1, |bounds|) (L∞) or a relative 1e-6 plus 1e-7 (L2,
                    L1), with the norm taken in float64.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robjax import losses, lowering
from robjax.attacks import draws
from robjax.attacks.task import Task
from robjax.balls import L0, L1, L2, Ball, Linf
from robjax.inputs import Bounds

_PROBABILITY = 1e-5
_READ = ("x_adv", "success", "first_success", "queries", "distance")
_JUDGE = 2**32 - 1  # what the keys of a verdict fold in; no attack has this number


class Column(NamedTuple):
    """What one attack did to N samples; of those it did not see, the initial values.

    Attributes:
      tried: [N] bool, the attack saw the sample.
      fooled: [N] bool, the image it returned is allowed and misclassified.
      predicted: [N] int32, class of that image, −1 where a logit is not finite.
      margin: [N] max_{i≠y} z_i − z_y of that image; −inf if it is not allowed, inf if
        a logit is not finite.
      first_success: [N] int32, as the attack counts; −1: never.
      distance: [N] ‖x_adv − x‖ in the norm of the attack's ball.
      queries: [N] int32, images evaluated, that of the verdict among them.
      outside: [N] bool, the image is not allowed.
      claimed: [N] bool, what the attack says of its success.
    """

    tried: np.ndarray
    fooled: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray
    outside: np.ndarray
    claimed: np.ndarray

    @classmethod
    def empty(cls, count: int) -> "Column":
        no, never = np.zeros(count, bool), np.full(count, -1, np.int32)
        low, zero = np.full(count, -np.inf, np.float32), np.zeros(count, np.float32)
        columns = (no, no, never, low, never, zero, np.zeros(count, np.int32), no, no)
        return cls(*(column.copy() for column in columns))


def attack_and_judge(
    task: Task, attack: Any, index: np.ndarray, salt: int | None
) -> tuple[Column, np.ndarray]:
    """One attack (None: no change) on one batch; the whole batch, padding too.

    What it claims in a lower precision (`dtype`) and the verdict denies, it attacks
    again in the precision of the model.
    """
    column, x_adv = _attack_and_judge(task, attack, index, salt)
    denied = np.flatnonzero(column.claimed & ~column.fooled)
    if task.attacked is task.model or not len(denied):
        return column, x_adv
    column, x_adv = jax.tree.map(np.array, (column, x_adv))  # writable
    full = task._replace(attacked=task.model)
    for rows, real in task.chunks(denied):
        again, images = _attack_and_judge(full, attack, index[rows], salt)
        rows, before = rows[:real], column.queries[rows[:real]]
        x_adv[rows] = images[:real]
        for values, new in zip(column, again, strict=True):
            values[rows] = new[:real]
        column.queries[rows] += before
    return column, x_adv


def _attack_and_judge(
    task: Task, attack: Any, index: np.ndarray, salt: int | None
) -> tuple[Column, np.ndarray]:
    x, y, keys = _place(task, task.take(index))
    size, result, ball = len(index), None, None
    if attack is not None:
        own = keys if salt is None else draws.fold(keys, salt)
        ball, numbers, options = _split(attack, x, index)
        result = _attack(
            *(task.attacked, x, y, own, ball, numbers),
            options=options,
            bounds=task.bounds,
            mesh=task.mesh,
        )
    x_adv = x if result is None else result["x_adv"].astype(x.dtype)
    verdict = _judge(task.model, x_adv, y, keys, eot=task.eot, mesh=task.mesh)
    predicted, margin = map(np.asarray, verdict[:2])
    x_adv, x, y = (np.asarray(array) for array in (x_adv, x, y))
    zero = np.zeros(size, np.int32)
    outside, distance = np.zeros(size, bool), zero.astype(np.float32)
    first, queries, claimed = zero, zero, predicted != y
    if result is not None:
        outside, distance = _measure(x_adv, x, ball, task.bounds)
        if distance is None:
            distance = np.asarray(result["distance"])
        first, queries, claimed = (
            np.asarray(result[name]) for name in ("first_success", "queries", "success")
        )
    fooled = (predicted != y) & ~outside
    margin = np.where(outside, -np.inf, margin)
    queries = queries + (task.eot or 1)
    column = Column(
        *(np.ones(size, bool), fooled, predicted, margin, first, distance),
        *(queries, outside, claimed),
    )
    return column, x_adv


def look_again(task: Task, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A second verdict on clean images: margin [B], and `_judge`'s simplex [B]."""
    x, y, keys = _place(task, task.take(index))
    verdict = _judge(task.model, x, y, keys, eot=task.eot, mesh=task.mesh)
    return np.asarray(verdict[1]), np.asarray(verdict[2])


def _place(task: Task, batch: Any) -> Any:
    """Each device gets its share of a batch."""
    sharding = NamedSharding(task.mesh, PartitionSpec("batch"))
    return jax.device_put(batch, sharding)


def trace(task: Task, attack: Any, index: np.ndarray) -> None:
    """Traces an attack on a batch; ValueError if it does not like its options."""
    x, y, keys = task.take(index)
    ball, numbers, options = _split(attack, x, index)
    if any(number is not None for number in numbers):  # judged while they are concrete
        bound = functools.partial(attack)
        if ball is not None:
            bound = functools.partial(bound, ball=ball)
        jax.eval_shape(
            lambda x, y, key: bound(task.attacked, x, y, key=key, bounds=task.bounds),
            *(x, y, keys),
        )
    _attack.eval_shape(
        *(task.attacked, x, y, keys, ball, numbers),
        options=options,
        bounds=task.bounds,
        mesh=task.mesh,
    )


def _split(attack: Any, x: jax.Array, index: np.ndarray) -> tuple[Any, tuple, tuple]:
    """Separates ball, what else is traced (arrays), and what is static."""
    bound = functools.partial(attack)
    keywords = dict(bound.keywords)
    ball = jax.tree.map(
        lambda eps: jnp.asarray(
            np.asarray(eps)[index] if np.ndim(eps) else eps, x.dtype
        ),
        keywords.pop("ball", None),
    )
    leaves, tree = jax.tree.flatten((bound.args, keywords))
    traced = tuple(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves)
    pairs = list(zip(leaves, traced, strict=True))
    numbers = tuple(leaf if t else None for leaf, t in pairs)
    static = tuple(None if t else leaf for leaf, t in pairs)
    return ball, numbers, (bound.func, tree, static, traced)


def _spread(function: Callable[..., Any], mesh: Mesh, *specs: Any) -> Any:
    """Each device runs `function` on its share of the batch, without waiting."""
    if mesh.size == 1:
        return function
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec("batch"),
        check_vma=False,
    )


@functools.partial(jax.jit, static_argnames=("options", "bounds", "mesh"))
def _attack(model, x, y, keys, ball, numbers, *, options, bounds, mesh):
    """Runs an attack that `_split` took apart; values are tracers, so no checks."""
    function, tree, static, traced = options
    whole, share = PartitionSpec(), PartitionSpec("batch")

    def attack(model, x, y, keys, ball, numbers):
        leaves = [
            n if t else s for n, s, t in zip(numbers, static, traced, strict=True)
        ]
        args, keywords = jax.tree.unflatten(tree, leaves)
        if ball is not None:
            keywords["ball"] = ball
        result = function(*args, model, x, y, **keywords, key=keys, bounds=bounds)
        # what else it returns need not have a value for each sample
        names = [n for n in _READ if ball is None or n != "distance"]
        return {name: getattr(result, name) for name in names}

    radius = jax.tree.map(lambda eps: share if eps.ndim else whole, ball)
    specs = (whole, share, share, share, radius, whole)
    return _spread(attack, mesh, *specs)(model, x, y, keys, ball, numbers)


@functools.partial(jax.jit, static_argnames=("eot", "mesh"))
def _judge(model, x, y, keys, *, eot, mesh):
    """Of x [B, *S]: class [B], −1 where a logit is not finite; margin [B]; simplex [B].

    The last is whether the outputs are probabilities, to 1e-5 as in AutoAttack's code.
    """

    def judge(model, x, y, keys):
        def logits_of(v):
            return draws.mean_logits(model, v, draws.fold(keys, _JUDGE), eot)

        logits = lowering.exact(logits_of)(x)
        finite = jnp.all(jnp.isfinite(logits), axis=1)
        predicted = jnp.where(finite, jnp.argmax(logits, axis=1), -1)
        margin = jnp.where(finite, losses.margin(logits, y), jnp.inf)
        off = jnp.abs(jnp.sum(logits, axis=1, dtype=jnp.float32) - 1)
        simplex = jnp.all(logits >= 0, axis=1) & (off < _PROBABILITY)
        return predicted.astype(jnp.int32), margin, simplex

    share = PartitionSpec("batch")
    return _spread(judge, mesh, PartitionSpec(), share, share, share)(model, x, y, keys)


def _measure(
    x_adv: np.ndarray, x: np.ndarray, ball: Ball | None, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which images are outside box or ball [B], and ‖x_adv − x‖ [B] (None: no ball)."""
    flat = x_adv.reshape(len(x), -1)
    inside = np.all((flat >= bounds[0]) & (flat <= bounds[1]), axis=1)  # NaN fails too
    if ball is None:
        return ~inside, None
    eps = np.asarray(ball.eps, np.float64)
    delta = np.abs(flat.astype(np.float64) - x.reshape(flat.shape))
    distance = _NORMS[type(ball)](delta)
    slack = 1e-6 * eps + 1e-7
    if isinstance(ball, Linf):
        slack = 1e-7 * max(1.0, *map(abs, bounds))
    return ~(inside & (distance <= eps + slack)), distance.astype(x.dtype)


_NORMS: dict[type, Callable[[np.ndarray], np.ndarray]] = {
    Linf: lambda delta: delta.max(axis=1),
    L2: lambda delta: np.sqrt((delta**2).sum(axis=1)),
    L1: lambda delta: delta.sum(axis=1),
    L0: lambda delta: np.count_nonzero(delta, axis=1).astype(np.float64),
}
