"""Any attack as a targeted one: the image is to be taken for one given class t.

    to_target(attack, t)(logits_fn, x, y, …)

The attack is given a model of two classes, "another class" and "t", with the logits

    z' = ( max_{c≠t} z_c, z_t )

and images of the first class. To fool this model is to reach t. Its margin is
z_t − max_{c≠t} z_c, which is what the targeted forms of Square, FMN and Carlini &
Wagner climb. With two classes the cross-entropy and the DLR loss rise with that margin,
so that steepest ascent climbs it, too. DeepFool and FAB linearise the boundary between
t and the class that is likeliest beside it.

**The nearest image of class t** may lie where t meets several classes, and a walk that
sees one boundary at a time ends too far: on a linear model of four classes FAB by 14 %,
FMN by 0.4 %. So the attacks that look for the nearest image take their last steps in L2
and L∞ under all boundaries at once (`minimal_norm/corners.py`), but not with
`early_exit`, `reference_quirks` or `confidence`. On 768 images of linear models of four
classes 5 distances in L∞ end more than 0.1 % too far, the worst 0.5 %.

FAB-T and `apgd_targeted` on their own are something else: their targets shape the
search, but any wrong class is a success.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from robjax import losses, lowering
from robjax.arrays import as_array, check_array, check_classes
from robjax.attacks.minimal_norm.carlini_wagner import carlini_wagner
from robjax.attacks.minimal_norm.corners import approach_class
from robjax.attacks.minimal_norm.ddn import ddn
from robjax.attacks.minimal_norm.deepfool import deepfool
from robjax.attacks.minimal_norm.fab import fab
from robjax.attacks.minimal_norm.fmn import fmn
from robjax.attacks.minimal_norm.minimal_distance import minimal_distance
from robjax.attacks.minimal_norm.search import Found, Search
from robjax.attacks.problem import Problem, check_draws, check_problem
from robjax.attacks.result import AttackResult
from robjax.balls import L2, Linf
from robjax.boxes import check_box
from robjax.checks import Bounds, check_labels
from robjax.evaluation.attack import Attack, gradient_free, uses_gradients
from robjax.model import LogitsFn, as_logits_fn, count_classes, mean_logits
from robjax.samples import flatten_samples, fold_keys, mask_samples
from robjax.traced import TracedCallable

_CLEAN = 2**32 - 2  # what the keys of the clean image fold in; no restart has it
_NEAREST = (carlini_wagner, ddn, deepfool, fab, fmn, minimal_distance)
_NO_TARGET = ("autoattack", "kl_pgd", "square_queries")
_AS_IT_IS = ("early_exit", "reference_quirks", "confidence")
Target = ArrayLike | Callable[[jax.Array, jax.Array], jax.Array]
"""A class, one for each sample [B], or (clean logits [B, K], labels [B]) -> [B]."""


def likeliest(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The likeliest class other than the label, for each sample.

    >>> likeliest(jnp.array([[1.0, 5.0, 3.0]]), jnp.array([1])).tolist()
    [2]

    Args:
      logits: [B, K].
      y: [B] labels.

    Returns:
      [B] int32.
    """
    logits = check_array("logits", logits, "[B, K]", finite=False)
    y = check_classes("y", y, *logits.shape)
    is_label = jnp.arange(logits.shape[1])[None] == y[:, None]
    return jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=1).astype(jnp.int32)


def to_target(attack: Attack, target: Target) -> Attack:
    """Makes an attack one that counts a single class as success.

    It is an attack like any other, and `evaluate` takes it. The robust accuracy is then
    the share of samples that do not reach the target; how often the attack succeeds is
    ``success_rate(name, among=labels != t)`` of the evaluation. All classes in turn:
    ``{f"to {c}": to_target(attack, c) for c in range(K)}``.

    >>> from robjax import attacks
    >>> from robjax.balls import L2
    >>> x = jnp.array([[1.0, 0.75, 0.0]])
    >>> y = jnp.array([0])
    >>> nearest = functools.partial(attacks.fmn, ball=L2(9.0), steps=20)
    >>> [round(float(to_target(nearest, t)(lambda x: x, x, y).distance[0]), 2)
    ...  for t in (1, 2)]  # to [[0.875, 0.875, 0]] and [[0.58, 0.58, 0.58]]
    [0.18, 0.74]

    Args:
      attack: any attack of `robjax.attacks` but `autoattack`, `kl_pgd` and
        `square_queries`, or one's own, with options bound or not. Its own `targets`,
        if it has any, are ranks among two classes: leave them out.
      target: t, a class for all samples, or [B]; or a function of the clean logits and
        the labels, as `likeliest`. In `evaluate`, which cuts the data into batches, a
        class or a function.

    Returns:
      (logits_fn, x, y, *, key, …) -> AttackResult of the attack on the model of two
      classes: `loss` is that of this model, and distances and `success` are those of
      reaching t. Where t is not reached, `x_adv` is x. A sample whose label is t has
      nothing to reach: no success, and an infinite distance.

    Raises:
      ValueError: the attack is not callable or one of these, or the target holds no
        integers or (when called) no classes.
    """
    if not callable(attack):
        raise ValueError(f"attack must be callable, got {attack!r}")
    bound = functools.partial(attack)
    name = getattr(bound.func, "__name__", "")
    if name in _NO_TARGET:
        raise ValueError(
            f"attack must be one that climbs or searches by itself, got {name}: of a "
            "suite, write {n: to_target(a, t) for n, a in suite('standard', ball)"
            ".items()}"
        )
    inner = functools.partial(bound.func, *bound.args)
    # an array is traced, so that another class compiles nothing
    aim = target if callable(target) else as_array(target)
    aim = np.zeros(0) if aim is None else aim
    if not callable(aim) and not (
        np.issubdtype(aim.dtype, np.integer) and aim.size and (aim >= 0).all()
    ):
        raise ValueError(
            "target must be a class, one for each sample, or a function (logits, "
            f"labels) -> [B], got {target!r}"
        )
    run = _reach if uses_gradients(attack) else _reach_without_gradients
    if bound.func in _NEAREST and not any(map(bound.keywords.get, _AS_IT_IS)):
        run = _reach_nearest
    return functools.partial(run, attack=inner, target=aim, **bound.keywords)


def _reach(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    attack: Attack,
    target: Any,
    key: jax.Array | None = None,
    bounds: Bounds = (0.0, 1.0),
    last_steps: bool = False,
    **options: Any,
) -> AttackResult:
    """Runs the attack on the model of two classes."""
    model = as_logits_fn(logits_fn)
    x, bounds = check_box(x, bounds)
    eot = options.get("eot")
    keys = check_draws(eot, key, len(x))
    num_classes = count_classes(model, x, keys)
    y = check_labels(y, len(x), num_classes=num_classes)
    if callable(target):
        clean_keys: Any = None if keys is None else fold_keys(keys, _CLEAN)
        target = target(mean_logits(model, x, clean_keys, eot), y)
    target = jnp.broadcast_to(target, y.shape) if jnp.ndim(target) == 0 else target
    target = check_labels(target, len(x), num_classes=num_classes, name="target")
    two = Partial(_two_classes, model, target)
    none = jnp.zeros_like(y)
    result = attack(two, x, none, key=key, bounds=bounds, **options)
    if last_steps and isinstance(options.get("ball"), Linf | L2):
        problem = check_problem(two, x, options["ball"], bounds)
        result = _last_steps(problem, model, none, target, result)
    success = result.success & (target != y)
    moved = jnp.any(flatten_samples(result.x_adv != x), axis=1)
    distance = jnp.where(moved & ~success, 0, result.distance)
    return result._replace(
        x_adv=jnp.where(mask_samples(success, x), result.x_adv, x),
        success=success,
        first_success=jnp.where(success, result.first_success, -1),
        distance=jnp.where(target == y, jnp.inf, distance),
    )


_reach_nearest = functools.partial(_reach, last_steps=True)


@jax.jit
def _last_steps(
    problem: Problem,
    model: TracedCallable,
    y: jax.Array,
    target: jax.Array,
    result: AttackResult,
) -> AttackResult:
    """Goes on from the result of an attack under all boundaries of the model."""
    problem, model, result = lax.stop_gradient((problem, model, result))
    search, empty = Search.begin(problem, y, early_exit=False)
    clean = lowering.exact(problem.logits_fn)(problem.x)
    found = Found(
        x_adv=result.x_adv,
        distance=result.distance,
        loss=result.loss,
        clean_loss=losses.margin(clean, y).astype(problem.x.dtype),
        first_success=result.first_success,
        queries=result.queries + empty.queries + 1,
    )
    return search.result(
        approach_class(search, found, model, target, steps=found.queries)
    )


@gradient_free
@functools.wraps(_reach)
def _reach_without_gradients(*args: Any, **options: Any) -> AttackResult:
    return _reach(*args, **options)


def _two_classes(
    model: LogitsFn, target: jax.Array, x: jax.Array, *keys: jax.Array
) -> jax.Array:
    """The largest logit of another class than t, and that of t, [B, 2]."""
    logits = model(x, *keys)
    is_target = jnp.arange(logits.shape[1])[None] == target[:, None]
    others = jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=1)
    own = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return jnp.stack([others, own], axis=1)
