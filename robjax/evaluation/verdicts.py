"""What counts as fooled: one attack on one batch, and the verdict on what it returned.

A verdict never trusts an attack. A fresh forward pass judges the images that the attack
returned, in the precision of the images (at least float32, on accelerators too). A
sample is fooled if its image is misclassified and lies

* in the box, exactly;
* in the ball, up to 1e-7 max(1, |bounds|) (L∞) or 1e-6 ε + 1e-7 (L2, L1, L0). The norm
  is computed in float64.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from robjax import losses, lowering
from robjax.advice import first_line
from robjax.balls import L0, L1, L2, Ball, Linf
from robjax.boxes import has_arrays
from robjax.checks import Bounds
from robjax.evaluation.arguments import advice_on_eot, check_bound
from robjax.evaluation.attack import Attack, BoundAttack
from robjax.evaluation.batches import Task
from robjax.evaluation.sharding import SHARED, SPLIT, over_devices, place
from robjax.model import mean_logits
from robjax.runs.processes import joined
from robjax.samples import fold_keys, is_concrete
from robjax.traced import TracedCallable

_PROBABILITY = 1e-5  # how far the sum of probabilities may be from 1
_FIELDS = ("success", "first_success", "queries", "distance")
_JUDGE = 2**32 - 1  # what the keys of a verdict fold in; no attack has this number


class Judgement(NamedTuple):
    """What a forward pass says of each of B images.

    Attributes:
      predicted: [B] int32, the class; −1 where a logit is not finite.
      margin: [B] max_{i≠y} z_i − z_y; inf where a logit is not finite.
      spread: [B] highest less lowest logit; 0 where a logit is not finite.
      simplex: [B] bool, the outputs are probabilities, up to 1e-5 as in AutoAttack's
        code, or in half precision up to one rounding of 1.
    """

    predicted: np.ndarray
    margin: np.ndarray
    spread: np.ndarray
    simplex: np.ndarray

    def __repr__(self) -> str:
        """Says how many images were judged; shows no arrays."""
        if not is_concrete(self.predicted):
            return "Judgement(traced)"
        return f"Judgement({len(self.predicted)} images)"


class Verdicts(NamedTuple):
    """What one attack did to N samples.

    Where the attack did not see a sample, the values are those of `empty`.

    Attributes:
      tried: [N] bool, the attack saw the sample.
      fooled: [N] bool, the image that it returned is misclassified, and inside box and
        ball.
      predicted: [N] int32, class of that image; −1 where a logit is not finite.
      margin: [N] max_{i≠y} z_i − z_y of that image. −inf: it is outside box or ball;
        inf: a logit is not finite.
      first_success: [N] int32, when the attack first fooled the model, as it counts
        itself. −1: never, or the attack does not say.
      distance: [N] ‖x_adv − x‖ in the norm of the attack's ball. Without a ball it is
        what the attack says, or 0.
      queries: [N] int32, images evaluated, that of the verdict among them; −1: the
        attack does not say.
      outside: [N] bool, the image is outside box or ball.
      claimed: [N] bool, the attack says that it fooled the model.
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

    def __repr__(self) -> str:
        """Says how many samples were fooled; shows no arrays."""
        if not (is_concrete(self.fooled) and is_concrete(self.tried)):
            return "Verdicts(traced)"
        return f"Verdicts({self.fooled.sum()} of {self.tried.sum()} fooled)"

    @classmethod
    def empty(cls, count: int) -> "Verdicts":
        """Returns the verdicts on an attack that has seen none of `count` samples."""
        return cls(
            tried=np.zeros(count, bool),
            fooled=np.zeros(count, bool),
            predicted=np.full(count, -1, np.int32),
            margin=np.full(count, -np.inf, np.float32),
            first_success=np.full(count, -1, np.int32),
            distance=np.zeros(count, np.float32),
            queries=np.zeros(count, np.int32),
            outside=np.zeros(count, bool),
            claimed=np.zeros(count, bool),
        )

    def first(self, count: int) -> "Verdicts":
        """Returns the first `count` verdicts: those on a batch without its copies."""
        return Verdicts(*(values[:count] for values in self))

    def put(self, index: np.ndarray, other: "Verdicts") -> None:
        """Writes the verdicts on a batch to the places `index` of its samples."""
        for values, new in zip(self, other, strict=True):
            values[index] = new


def attack_and_judge(
    task: Task, attack: Attack | None, index: np.ndarray, salt: int | None
) -> tuple[Verdicts, np.ndarray]:
    """Runs one attack on one batch and judges the images that it returns.

    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.9, 0.2], [0.1, 0.5]], np.float32), [0, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> def mirror(logits_fn, x, y, *, key, bounds):
    ...     return x[:, ::-1]
    >>> verdicts, images = attack_and_judge(task, mirror, np.arange(2), None)
    >>> verdicts.fooled.tolist()
    [True, False]

    Args:
      task: what is attacked.
      attack: with its options bound; None leaves the images as they are.
      index: [B] samples of the batch, with its copies.
      salt: what the keys of the samples are folded with before the attack gets them;
        None: the attack gets them as they are.

    Returns:
      The verdicts, and the images [B, *S] that they are about.
    """
    x, y, keys = place(task.take(index), task.mesh, SPLIT)
    if attack is None:
        return _judge_clean(task, x, y, keys), np.asarray(x)
    bound = BoundAttack(attack, task.bounds)
    ball = bound.ball_of(index, x.dtype)
    own_keys = keys if salt is None else fold_keys(keys, salt)
    program = _program(task.mesh, _spec_of(ball))
    box = _box_of(task, index)
    returned = program(bound.call, task.attacked, x, y, own_keys, ball, box)
    bounds = task.bounds_of(index)
    verdicts, x_adv = _judge_attacked(task, x, y, keys, ball, bounds, returned)
    denied = np.flatnonzero(verdicts.claimed & ~verdicts.fooled)
    if task.attacked is task.model or not len(denied):
        return verdicts, x_adv
    return _attack_again(task, attack, index, salt, denied, verdicts, x_adv)


def _attack_again(
    task: Task,
    attack: Attack,
    index: np.ndarray,
    salt: int | None,
    denied: np.ndarray,
    verdicts: Verdicts,
    x_adv: np.ndarray,
) -> tuple[Verdicts, np.ndarray]:
    """Attacks the samples `denied` again, in the precision of the model.

    denied: places in the batch of false claims, made in a lower precision.
    verdicts, x_adv: of the whole batch so far.
    """
    verdicts = Verdicts(*(np.array(values) for values in verdicts))
    x_adv = np.array(x_adv)
    full = task._replace(attacked=task.model)
    for batch, real in task.batches(denied):
        again, images = attack_and_judge(full, attack, index[batch], salt)
        rows = batch[:real]
        earlier = verdicts.queries[rows]
        verdicts.put(rows, again.first(real))
        verdicts.queries[rows] += earlier
        x_adv[rows] = images[:real]
    return verdicts, x_adv


def attack_all(task: Task, attack: Attack | None, index: np.ndarray) -> Verdicts:
    """Runs one attack on many samples, in batches, and judges what it returns.

    Several processes share the batches.

    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.9, 0.2], [0.1, 0.5]], np.float32), [0, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> attack_all(task, None, np.arange(2)).fooled.tolist()
    [False, True]

    Args:
      task, attack: as in `attack_and_judge`.
      index: [n] samples, n ≥ 1.

    Returns:
      The verdicts [n].
    """

    def look(batch: tuple[np.ndarray, int]) -> Verdicts:
        verdicts, _ = attack_and_judge(task, attack, batch[0], None)
        return verdicts.first(batch[1])

    def about() -> dict[str, Any]:
        return {**task.facts(), "samples": index.tolist()}

    with joined("verdicts", about) as group:
        parts = group.map(look, task.batches(index))
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def check_attack(label: str, attack: Attack, task: Task) -> None:
    """Checks an attack, and traces it as it will run, so that it checks its options.

    Nothing is compiled. JAX keeps traces, so an attack that has run once with the same
    options costs nothing.

    >>> task = Task.make(
    ...     lambda x: x, np.ones((2, 2), np.float32), [0, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> check_attack("attack", lambda f, x, y, *, key, bounds: x[:, ::-1], task)
    >>> check_attack("attack", lambda f, x, y, *, key, bounds: x[:, :1], task)
    Traceback (most recent call last):
      ...
    ValueError: attack must return x_adv of shape (2, 2) for 2 images, got (2, 1)

    Args:
      label: what the caller calls it, for messages.
      attack: with its options bound.
      task: what it is to attack.

    Raises:
      ValueError: `attack` is no untargeted attack, or does not like its options.
    """
    check_bound(label, attack, len(task.labels))
    bound = BoundAttack(attack, task.bounds)
    index, _ = next(task.batches(np.arange(len(task.labels))))
    x, y, keys = place(task.take(index), task.mesh, SPLIT)  # or JAX would trace again
    ball = bound.ball_of(index, x.dtype)
    box = _box_of(task, index)
    try:
        if jax.tree.leaves(bound.call):  # bound arrays have values outside jit only
            call = functools.partial(bound.call.unwrap(), **_given(ball, box))
            jax.eval_shape(call, task.attacked, x, y, key=keys)
        program = _program(task.mesh, _spec_of(ball))
        returned = program.eval_shape(bound.call, task.attacked, x, y, keys, ball, box)
    except Exception as error:
        if advice := advice_on_eot(attack, task):
            raise ValueError(f"{label} {advice}") from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{label} must be an attack that JAX can trace, unlike autoattack (its "
            "attacks are robjax.attacks.suite, given with cascade=True) and "
            f"square_queries; the error was {type(error).__name__}: {first_line(error)}"
        ) from error
    for field, array in returned.items():
        wanted = x.shape if field == "x_adv" else y.shape
        if array.shape != wanted:
            raise ValueError(
                f"{label} must return {field} of shape {wanted} for {len(x)} images, "
                f"got {array.shape}"
            )


def _box_of(task: Task, index: np.ndarray) -> Bounds | None:
    """The boxes of a batch on the devices; None where bounds are two numbers."""
    bounds = task.bounds_of(index)
    return place(bounds, task.mesh, SPLIT) if has_arrays(bounds) else None


def _given(ball: Ball | None, box: Bounds | None) -> dict[str, Any]:
    """What an attack is given with each batch: its ball and its boxes, if any."""
    both = {"ball": ball, "bounds": box}
    return {name: value for name, value in both.items() if value is not None}


def _spec_of(ball: Ball | None) -> PartitionSpec:
    """How the devices get ε: each the radii of its samples, or all the one radius."""
    return SPLIT if ball is not None and ball.eps.ndim else SHARED


@functools.cache
def _program(mesh: Mesh, radius: PartitionSpec):
    """Compiles `_attack`, so that every device attacks its own samples."""
    specs = (SHARED, SHARED, SPLIT, SPLIT, SPLIT, radius, SPLIT)
    return jax.jit(over_devices(_attack, mesh, specs))


def _attack(
    call: TracedCallable,
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    ball: Ball | None,
    box: Bounds | None,
) -> dict[str, jax.Array]:
    """Calls an attack; returns what the attack returned, by the name of the field."""
    result = call.unwrap()(model, x, y, key=keys, **_given(ball, box))
    if isinstance(result, jax.Array):
        return {"x_adv": result}
    if not hasattr(result, "x_adv"):
        raise ValueError(
            "attacks must return the images x_adv [b, *S] alone, or an object with "
            f"x_adv, got {type(result).__name__}"
        )
    # what else it returns need not have a value for each sample
    known = [name for name in _FIELDS if hasattr(result, name)]
    return {name: getattr(result, name) for name in ["x_adv", *known]}


def _judge_clean(task: Task, x: jax.Array, y: jax.Array, keys: jax.Array) -> Verdicts:
    """The verdicts on the clean images."""
    size = len(x)
    judged = judge(task, x, y, keys)
    misclassified = judged.predicted != np.asarray(y)
    return Verdicts.empty(size)._replace(
        tried=np.ones(size, bool),
        fooled=misclassified,
        predicted=judged.predicted,
        margin=judged.margin,
        first_success=np.zeros(size, np.int32),
        queries=np.full(size, task.eot or 1, np.int32),
        claimed=misclassified,
    )


def _judge_attacked(
    task: Task,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    ball: Ball | None,
    bounds: Bounds,
    returned: dict[str, jax.Array],
) -> tuple[Verdicts, np.ndarray]:
    """The verdicts on what an attack `returned`; they fill in what it does not say."""
    size = len(x)
    images = returned["x_adv"].astype(x.dtype)
    judged = judge(task, images, y, keys)
    x_adv = np.asarray(images)
    outside, distance = measure(x_adv, np.asarray(x), ball, bounds)
    misclassified = judged.predicted != np.asarray(y)
    if distance is None:
        distance = np.asarray(returned.get("distance", np.zeros(size, x.dtype)))
    unknown = np.full(size, -1, np.int32)
    queries = np.asarray(returned.get("queries", unknown))
    verdicts = Verdicts(
        tried=np.ones(size, bool),
        fooled=misclassified & ~outside,
        predicted=judged.predicted,
        margin=np.where(outside, -np.inf, judged.margin),
        first_success=np.asarray(returned.get("first_success", unknown)),
        distance=distance,
        queries=np.where(queries < 0, -1, queries + (task.eot or 1)),
        outside=outside,
        claimed=np.asarray(returned.get("success", misclassified)),
    )
    return verdicts, x_adv


def judge(task: Task, x: jax.Array, y: jax.Array, keys: jax.Array) -> Judgement:
    """Classifies images by the forward pass that decides.

    >>> x = np.array([[0.25, 0.75], [0.5, 1.0]], np.float32)
    >>> task = Task.make(
    ...     lambda x: x, x, [0, 1], key=jax.random.key(0), bounds=(0.0, 1.0),
    ...     devices=jax.local_devices()[:1],
    ... )
    >>> judged = judge(task, *task.take(np.arange(2)))
    >>> judged.predicted.tolist(), judged.margin.tolist(), judged.simplex.tolist()
    ([1, 1], [0.5, -0.5], [True, False])

    Args:
      task: what is attacked.
      x: [B, *S] images as an attack returned them.
      y: [B] labels.
      keys: [B] of a randomised model.
    """
    answers = _judge(task.model, x, y, keys, eot=task.eot, mesh=task.mesh)
    return Judgement(*map(np.asarray, answers))


@functools.partial(jax.jit, static_argnames=("eot", "mesh"))
def _judge(
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    *,
    eot: int | None,
    mesh: Mesh,
) -> tuple[jax.Array, ...]:
    """The compiled part of `judge`: the fields of a `Judgement`."""

    def answer(
        model: TracedCallable, x: jax.Array, y: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, ...]:
        def logits_of(v: jax.Array) -> jax.Array:
            return mean_logits(model, v, fold_keys(keys, _JUDGE), eot)

        logits = lowering.exact(logits_of)(x)
        finite = jnp.all(jnp.isfinite(logits), axis=1)
        predicted = jnp.where(finite, jnp.argmax(logits, axis=1), -1)
        margin = jnp.where(finite, losses.margin(logits, y), jnp.inf)
        spread = jnp.where(finite, jnp.ptp(logits, axis=1), 0)
        off = jnp.abs(jnp.sum(logits, axis=1, dtype=jnp.float32) - 1)
        # in half precision the sum is that of rounded probabilities
        sure = max(_PROBABILITY, float(jnp.finfo(logits.dtype).eps))
        simplex = jnp.all(logits >= 0, axis=1) & (off < sure)
        return predicted.astype(jnp.int32), margin, spread, simplex

    on_devices = over_devices(answer, mesh, (SHARED, SPLIT, SPLIT, SPLIT))
    return on_devices(model, x, y, keys)


def measure(
    x_adv: np.ndarray, x: np.ndarray, ball: Ball | None, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray | None]:
    """Finds which images left box or ball, and their distances from the clean ones.

    >>> x = np.full((2, 3), 0.5, np.float32)
    >>> moved = x + np.float32([[0.125], [0.25]])
    >>> outside, distance = measure(moved, x, Linf(0.125), (0.0, 1.0))
    >>> outside.tolist(), distance.tolist()
    ([False, True], [0.125, 0.25])

    Args:
      x_adv: [B, *S] images of an attack.
      x: [B, *S] clean images.
      ball: the threat model, or None for the box alone.
      bounds: lowest and highest pixel value, two numbers or two arrays [B, *S].

    Returns:
      [B] bool, outside box or ball; and the distance [B] in the ball's norm, None
      without a ball.
    """
    flat = x_adv.reshape(len(x), -1)
    # a number stays one: of an array NumPy would take the float64, no float32 equals it
    low, high = (
        np.reshape(end, (-1, flat.shape[1])) if np.ndim(end) else end for end in bounds
    )
    inside = np.all((flat >= low) & (flat <= high), axis=1)  # NaN fails too
    if ball is None:
        return ~inside, None
    eps = np.asarray(ball.eps, np.float64)
    delta = np.abs(flat.astype(np.float64) - x.reshape(flat.shape))
    distance = _NORMS[type(ball)](delta)
    slack = 1e-6 * eps + 1e-7
    if isinstance(ball, Linf):
        largest = np.maximum(np.abs(low), np.abs(high)).max(axis=-1)
        slack = 1e-7 * np.maximum(1.0, largest)
    return ~(inside & (distance <= eps + slack)), distance.astype(x.dtype)


_NORMS: dict[type, Callable[[np.ndarray], np.ndarray]] = {
    Linf: lambda delta: delta.max(axis=1),
    L2: lambda delta: np.sqrt((delta**2).sum(axis=1)),
    L1: lambda delta: delta.sum(axis=1),
    L0: lambda delta: np.count_nonzero(delta, axis=1).astype(np.float64),
}
