"""Checks of what an evaluation is given: data, attacks and their balls.

A mistake is one ``ValueError`` that names the argument and says what to write instead.
Nothing has been compiled by then.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from robjax.balls import L0, L1, L2, Linf
from robjax.boxes import check_box, has_arrays
from robjax.checks import Bounds, check_bounds, check_labels, check_number
from robjax.data import Dataset, Images, StoredImages, to_float
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import Task

_BALLS = (Linf, L2, L1, L0)
# Evaluations know no attack; a test compares this sentence with their signatures.
_WITH_EOT = "apgd, apgd_targeted, fgsm, kl_pgd, mi_fgsm, pgd"


class Data(NamedTuple):
    """Checked images and labels, on the host.

    Attributes:
      images: [N, *S] floating or, with `scale`, integers to be divided by it.
      labels: [N], those of a `Dataset` checked.
      scale: None for floating images.
      bounds: lowest and highest pixel value, two numbers or two arrays [N, *S].
    """

    images: Images
    labels: Any
    scale: float | None
    bounds: Bounds

    def __repr__(self) -> str:
        """Shows the shape of the images; no arrays."""
        return f"Data(images {self.images.shape})"


def check_data(data: object, bounds: Bounds) -> Data:
    """Checks a data set; labels of a tuple are checked with the model (`Task.make`).

    >>> check_data((np.ones((2, 3)), [0, 1]), (0.0, 1.0))
    Data(images (2, 3))
    >>> check_data([np.ones((2, 3)), [0, 1]], (0.0, 1.0))
    Traceback (most recent call last):
      ...
    ValueError: data must be a Dataset or a tuple (images, labels), got list

    Args:
      data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels [N]).
      bounds: lowest and highest pixel value, as `robjax.boxes.check_box` takes them.

    Raises:
      ValueError: `data` is neither, or its images are malformed or leave `bounds`; or
        these are malformed.
    """
    if isinstance(data, Dataset):
        images = data.images
        if not isinstance(images, StoredImages):
            images = np.asarray(images)
        scale = data.scale
        bounds = _check_scaled(images, scale, bounds)
        labels = check_labels(
            data.labels, len(images), num_classes=data.num_classes, name="data labels"
        )
        return Data(images, labels, scale, bounds)
    if not (isinstance(data, tuple) and len(data) == 2):
        kind = type(data).__name__
        found = f"{kind} of {len(data)}" if isinstance(data, tuple) else kind
        raise ValueError(
            f"data must be a Dataset or a tuple (images, labels), got {found}"
        )
    if any(isinstance(part, jax.core.Tracer) for part in data):
        raise ValueError(
            "data must be concrete, got tracers: evaluations work on the host, so call "
            "them outside jit"
        )
    images, bounds = check_box(data[0], bounds, name="data images")
    return Data(np.asarray(images), data[1], None, bounds)


def _check_scaled(images: Images, scale: float, bounds: Bounds) -> Bounds:
    """Checks bounds, and that images to be divided by `scale` lie inside."""
    if has_arrays(bounds):
        return check_box(to_float(images, scale), bounds, name="data images")[1]
    least, most = check_bounds(bounds)
    low = images.min(initial=0) / scale
    high = images.max(initial=0) / scale
    if not (least <= low and high <= most):  # NaN fails too
        raise ValueError(
            f"data images must lie inside bounds {(least, most)}, got values from "
            f"{low:g} to {high:g}"
        )
    return least, most


def check_attacks(attacks: object, *, name: str = "attacks") -> Mapping[str, Attack]:
    """Checks that attacks have names.

    >>> list(check_attacks({"mirror": lambda f, x, y, *, key, bounds: x[:, ::-1]}))
    ['mirror']

    Args:
      attacks: name -> attack; what the attacks take is for `check_attack`.
      name: what the caller calls `attacks`, for the message.

    Raises:
      ValueError: `attacks` is no mapping, a name is no string or "clean", or an attack
        is not callable.
    """
    if not isinstance(attacks, Mapping):
        several = attacks if isinstance(attacks, list | tuple) else [attacks]
        names = [_name_of(attack) for attack in several if callable(attack)]
        example = ", ".join(f'"{name}": …' for name in names or ["pgd"])
        raise ValueError(
            f"{name} must be a mapping from names to attacks, as {{{example}}}, got "
            f"{type(attacks).__name__}"
        )
    for label, attack in attacks.items():
        if not isinstance(label, str):
            raise ValueError(f"{name} must have names that are strings, got {label!r}")
        if not callable(attack):
            raise ValueError(f"{name}[{label!r}] must be callable, got {attack!r}")
    if "clean" in attacks:
        raise ValueError(f"{name} must not name one 'clean': that is the clean image")
    return attacks


def check_ball(label: str, ball: object, count: int) -> None:
    """Checks that a ball has a radius.

    >>> check_ball("ball", Linf(0.1), count=2)
    >>> check_ball("ball", Linf, count=2)
    Traceback (most recent call last):
      ...
    ValueError: ball must have a radius, as in Linf(0.03), got the class Linf

    Args:
      label: what the caller calls it, for the message.
      ball: anything.
      count: N; the radius may be [N].

    Raises:
      ValueError: `ball` is no ball, or its radius no number or [N] of at least 0.
    """
    if isinstance(ball, type) and issubclass(ball, _BALLS):
        kind = ball.__name__
        example = f"{kind}(3)" if ball is L0 else f"{kind}(0.03)"
        raise ValueError(
            f"{label} must have a radius, as in {example}, got the class {kind}"
        )
    if not isinstance(ball, _BALLS):
        raise ValueError(
            f"{label} must be Linf(eps), L2(eps), L1(eps) or L0(eps), got {ball!r}"
        )
    check_number(f"{label}.eps", ball.eps, minimum=0, batch_size=count)


def check_bound(label: str, attack: object, count: int) -> None:
    """Checks that an attack is one, and that all its options are bound.

    The options themselves are for the attack to check (`verdicts.check_attack`).

    >>> check_bound("attack", lambda f, x, y, *, key, bounds: x[:, ::-1], count=2)
    >>> check_bound("attack", None, count=2)
    Traceback (most recent call last):
      ...
    ValueError: attack must be callable, got None

    Args:
      label: what the caller calls it, for the message.
      attack: anything.
      count: N; a radius may be [N].

    Raises:
      ValueError: `attack` is no untargeted attack, lacks an option, or has a bound ball
        without a radius.
    """
    if not callable(attack):
        raise ValueError(f"{label} must be callable, got {attack!r}")
    options = functools.partial(attack).keywords
    if options.get("targeted", False):
        raise ValueError(f"{label} must be untargeted, got {attack!r}")
    if "bounds" in options:
        raise ValueError(
            f"{label} must not have bounds of its own, got {options['bounds']!r}: give "
            "bounds= to the evaluation"
        )
    target: Any = options.get("target")
    if not callable(target) and np.ndim(target) > 0:
        raise ValueError(
            f"{label} must have a class as target, or a function (logits, labels) -> "
            "[B] such as attacks.likeliest, since evaluations choose and reorder "
            f"images, got an array of shape {np.shape(target)}"
        )
    if options.get("ball") is not None:  # None is the box alone
        check_ball(f"{label} ball", options["ball"], count)
    _check_call(label, attack)


def _check_call(label: str, attack: Attack) -> None:
    """Checks that an attack can be called as evaluations call it."""
    bound = functools.partial(attack)
    given = bound.keywords | {"key": None, "bounds": None}
    if given.get("ball") is None:  # the box alone: the attack gets no ball
        given.pop("ball", None)
    try:
        signature = inspect.signature(bound.func)
    except (TypeError, ValueError):  # it tells nothing of its parameters
        return
    try:
        signature.bind(*bound.args, None, None, None, **given)
    except TypeError as error:
        name = _name_of(attack)
        options = [key for key in list(signature.parameters)[3:] if key not in given]
        example = "ball=Linf(0.03)" if "ball" in options else "…"
        raise ValueError(
            f"{label} must be callable as attack(logits_fn, x, y, key=, bounds=), with "
            f"all other options bound, as in functools.partial({name}, {example}), got "
            f"{name}: {error} (options left: {', '.join(options) or 'none'})"
        ) from error


def advice_on_eot(attack: Attack, task: Task) -> str:
    """Says what to do if attack and task disagree on whether the model is random.

    >>> task = Task.make(
    ...     lambda x, keys: x, np.ones((2, 2), np.float32), [0, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), eot=4,
    ... )
    >>> def mine(logits_fn, x, y, *, key, bounds, eot=None):
    ...     return x
    >>> advice_on_eot(mine, task).partition(": ")[2]
    'write functools.partial(mine, eot=4, …)'

    Args:
      attack: with its options bound; tracing it failed.
      task: what it is to attack.

    Returns:
      The end of a sentence that begins with the attack; empty if they agree.
    """
    bound = functools.partial(attack).keywords.get("eot")
    x, _, keys = task.take(np.arange(1))
    name = _name_of(attack)
    if task.eot is not None and bound is None and not _takes(task.attacked, x):
        why = f"since with eot={task.eot} logits_fn takes (images, keys)"
        parameters = inspect.signature(attack).parameters
        if "eot" in parameters:
            how = f"functools.partial({name}, eot={task.eot}, …)"
            return f"must have an eot bound, {why}: write {how}"
        return (
            f"must have an eot bound, {why}; {name} has no such option, but these of "
            f"robjax.attacks have: {_WITH_EOT}"
        )
    if task.eot is None and bound is not None and not _takes(task.attacked, x, keys):
        return (
            f"must not have eot={bound} bound, since without eot= in the evaluation "
            "logits_fn takes images alone"
        )
    return ""


def _takes(model: Attack, *inputs: jax.Array) -> bool:
    """Whether a model can be traced with these inputs."""
    try:
        jax.eval_shape(model, *inputs)
    except Exception:  # whatever the model raises
        return False
    return True


def _name_of(attack: object) -> str:
    """What an attack is called where it was defined."""
    while isinstance(attack, functools.partial):
        attack = attack.func
    return getattr(attack, "__name__", type(attack).__name__)
