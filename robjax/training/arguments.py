"""What `fit` is given, checked before anything compiles."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from robjax.checks import check_labels, check_logits, check_number
from robjax.data import Dataset
from robjax.training.callbacks import Callback
from robjax.training.config import FitConfig
from robjax.training.objectives import Objective
from robjax.training.objectives.network import takes_groups
from robjax.training.trainable import Linen, Trainable, Variables, rounded


def check_options(
    objective: object,
    config: object,
    optimizer: object,
    on_epoch: object,
    callbacks: Any,
) -> None:
    """Raises ValueError unless the options are of the right kind.

    >>> from robjax.training.objectives import standard
    >>> check_options(standard, FitConfig(), None, None, ())
    """
    if isinstance(objective, type) or not callable(objective):
        raise ValueError(
            "objective must be a function, as robjax.training.objectives has them, got "
            f"{objective!r}"
        )
    try:
        grouped = {"groups": None} if takes_groups(objective) else {}
        inspect.signature(objective).bind(
            None, None, None, keys=None, strength=None, **grouped
        )
    except TypeError as error:
        raise ValueError(
            "objective must be called as objective(network, images, labels, keys=, "
            f"strength=), as those of robjax.training.objectives, got {objective!r}: "
            f"{error}"
        ) from error
    if not isinstance(config, FitConfig):
        raise ValueError(f"config must be a FitConfig, as FitConfig(), got {config!r}")
    if not (optimizer is None or hasattr(optimizer, "init")):
        raise ValueError(
            f"optimizer must be one of optax, as optax.adam(1e-3), got {optimizer!r}"
        )
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch must be a function or None, got {on_epoch!r}")
    listed = isinstance(callbacks, Sequence) and not isinstance(callbacks, Callback)
    if not (listed and all(isinstance(one, Callback) for one in callbacks)):
        raise ValueError(
            "callbacks must be a list of those of robjax.training.callbacks, got "
            f"{callbacks!r}; a function of (epoch, variables) is on_epoch"
        )


def check_ball(objective: Objective) -> None:
    """Raises ValueError if a ball is bound to the objective and has no radius ≥ 0.

    >>> import functools
    >>> from robjax.balls import Linf
    >>> from robjax.training.objectives import adversarial
    >>> check_ball(functools.partial(adversarial, ball=Linf(0.1)))
    """
    inner: Any = objective
    while inner is not None:
        bound = getattr(inner, "keywords", {})
        if "ball" in bound:
            eps = getattr(bound["ball"], "eps", None)
            check_number("objective's ball.eps", eps, minimum=0)
        inner = getattr(inner, "func", getattr(inner, "__wrapped__", None))


def check_data(
    model: Trainable, data: object, objective: Objective, config: FitConfig
) -> None:
    """Raises ValueError unless `model` can learn `data`; compiles nothing.

    >>> from robjax.data import load
    >>> from robjax.models import Linear
    >>> from robjax.training.objectives import standard
    >>> check_data(Linen(Linear(10)), load("digits", "test"), standard, FitConfig())
    """
    if not isinstance(data, Dataset):
        raise ValueError(
            "data must be a Dataset, as robjax.data.from_arrays(images, labels) makes "
            f"it, got {type(data).__name__}"
        )
    count = len(data.labels)
    if config.batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of samples, {count}, got "
            f"{config.batch_size}"
        )
    check_ball(objective)
    check_labels(data.labels, count, num_classes=data.num_classes, name="labels")
    logits = check_passes(rounded(model, config.dtype), data.images.shape[1:])
    if logits.shape[1] < data.num_classes:
        raise ValueError(
            f"model must have an output for each of the {data.num_classes} classes, "
            f"got {logits.shape[1]}"
        )
    if takes_groups(objective) and data.groups is None:
        raise ValueError(
            "data must have groups for an objective that takes them, as "
            f"robjax.data.from_arrays(..., groups=...) makes it, got {data!r}"
        )


def check_passes(model: Trainable, image: Sequence[int]) -> jax.ShapeDtypeStruct:
    """Checks that a model runs in both modes; returns the shape of its logits.

    >>> from robjax.models import Linear
    >>> check_passes(Linen(Linear(10)), (8, 8, 1)).shape
    (1, 10)

    Args:
      model: what `trainable` gives.
      image: the shape of one image.

    Raises:
      ValueError: it cannot be called with images, or not in train mode.
    """
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    batch = jax.ShapeDtypeStruct((2, *image), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        variables = jax.eval_shape(model.init, key, one)
        logits = jax.eval_shape(model, variables, one)
    except Exception as error:
        raise ValueError(
            f"model must take images {[2, *image]}, got {type(error).__name__}: {error}"
        ) from error
    check_logits(logits, 1, name="model")
    try:
        jax.eval_shape(lambda *given: model.train(*given)[0], variables, batch, key)
    except Exception as error:
        raise ValueError(
            f"model must run in train mode, got {type(error).__name__}: {error}"
        ) from error
    return logits


def check_devices_share(model: Trainable, image: Sequence[int], count: int) -> None:
    """Raises ValueError if N devices would not do what one does.

    >>> from robjax.models import Linear
    >>> check_devices_share(Linen(Linear(10)), (8, 8, 1), 2)
    """
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key, one)
    if count == 1 or not set(variables) - {"params"} or model.joins_devices:
        return
    raise ValueError(
        "model must have a field axis_name, handed to its batch norm, to be trained on "
        f"{count} devices"
        if isinstance(model, Linen)
        else "model must update no variables but those of nnx.BatchNorm to be trained "
        f"on {count} devices"
    )


def check_variables(
    model: Trainable,
    variables: object,
    image: Sequence[int],
    *,
    name: str = "variables",
) -> Variables:
    """Checks that variables fit a model.

    >>> from robjax.models import Linear
    >>> variables = {"params": {"logits": {"kernel": np.ones((64, 10))}}}
    >>> check_variables(Linen(Linear(10)), variables, (8, 8, 1))
    Traceback (most recent call last):
      ...
    ValueError: variables must fit the model: params/logits/bias is missing

    Args:
      model: what `trainable` gives.
      variables: nested mappings of arrays, {"params": ...} first.
      image: the shape of one image.
      name: what the caller calls them, for the message.

    Returns:
      The variables as dictionaries of arrays on the default device, in the dtypes that
      the model has. A collection "groups" stays.

    Raises:
      ValueError: something is missing, too much, or of another shape; it is named.
    """
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    wanted = _flat(jax.eval_shape(model.init, key, one))
    if not isinstance(variables, Mapping):
        raise ValueError(
            f'{name} must be {{"params": ...}}, as model.init returns them, got '
            f"{type(variables).__name__}"
        )
    if "params" not in variables:
        raise ValueError(
            f'{name} must be {{"params": ...}}, as model.init returns them, got the '
            f"collections {sorted(variables)}"
        )
    found = _flat(variables)
    tree: dict[str, Any] = {}
    for path in sorted(wanted.keys() | found.keys()):
        text = "/".join(path)
        if path not in found:
            raise ValueError(f"{name} must fit the model: {text} is missing")
        if path not in wanted and path[0] != "groups":
            raise ValueError(f"{name} must fit the model, which has no {text}")
        like = wanted.get(path, found[path])
        if np.shape(found[path]) != like.shape:
            raise ValueError(
                f"{name} must fit the model: {text} has the shape "
                f"{np.shape(found[path])}, that of the model is {like.shape}"
            )
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = jax.numpy.asarray(found[path], like.dtype)
    return tree


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The leaves of nested mappings by their paths."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {(str(name), *path): v for path, v in _flat(value).items()}
        else:
            found[(str(name),)] = value
    return found
