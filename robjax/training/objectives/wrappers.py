"""What can be put around any objective: class weights, smoothed labels, augmentation.

    objective = objectives.weighted(objectives.standard, [1.0, 5.0])
    objective = objectives.smoothed(objective, 0.1)

Each returns an objective again, so that they can be put around each other.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax import losses
from robjax.arrays import check_array
from robjax.checks import check_range
from robjax.training.objectives.network import Network, Objective, Outcome

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(image [*S], key) -> image of the same shape."""


def weighted(objective: Objective, class_weights: Sequence[float]) -> Objective:
    """The objective with a weight for each class.

    Sample i of a batch counts w(y_i) B / Σ_j w(y_j), so that the batch's loss is the
    weighted mean of its losses: what the same batch would give in which each sample
    stands w(y_i) times. The sum goes over all devices.

    >>> from robjax.training.objectives import standard
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> objective = weighted(standard, [3.0, 1.0])
    >>> loss, _, _ = objective(network, images, labels, keys=keys, strength=1.0)
    >>> bool(loss[0] == losses.cross_entropy(images, labels)[0])  # alone in its batch
    True

    Args:
      objective: any.
      class_weights: w [K], not negative, one for each output of the model; only their
        ratios matter.

    Raises:
      ValueError: the weights are not numbers from 0, or all 0; when it runs: the model
        has another number of outputs.
    """
    _check_objective(objective)
    weights = np.asarray(check_array("class_weights", class_weights, "[K]", low=0))
    if not weights.any():
        raise ValueError(
            "class_weights must be one number for each class, not all 0, got "
            f"{class_weights!r}"
        )
    return _around(objective, _weighted, weights=tuple(map(float, weights)))


def smoothed(objective: Objective, amount: float) -> Objective:
    """The objective with the cross-entropy of smoothed labels in its loss.

    See `robjax.losses.smoothed_cross_entropy`. Attacks inside the objective keep the
    labels as they are.

    >>> from robjax.training.objectives import standard
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> objective = smoothed(standard, 1.0)
    >>> loss, _, _ = objective(network, images, labels, keys=keys, strength=1.0)
    >>> bool(jnp.allclose(loss, -jax.nn.log_softmax(images).mean(1)))
    True

    Args:
      objective: one with a keyword `loss`: `standard`, `adversarial`, `trades`, `awp`,
        `n_fgsm`, or what stands around one of them.
      amount: share of the probability that is spread over all classes, 0 to 1.

    Raises:
      ValueError: `amount` is out of range, or the objective has no keyword `loss`.
    """
    check_range("amount", amount, 0, 1)
    _check_objective(objective)
    if "loss" not in inspect.signature(objective).parameters:
        raise ValueError(
            "objective must have a keyword loss, as objectives.standard, adversarial, "
            f"trades, awp and n_fgsm have, got {objective!r}"
        )
    loss = functools.partial(losses.smoothed_cross_entropy, amount=amount)
    return functools.partial(objective, loss=loss)


def augmented(objective: Objective, augment: Augment) -> Objective:
    """The objective on images that a function has changed at random.

    The function is given one image and a key. The key is the sample's own, so that the
    draws depend neither on the batch nor on the devices and a resumed run repeats them.

    >>> from robjax.training.objectives import standard
    >>> from robjax.training.objectives.network import tiny_problem
    >>> network, images, labels, keys = tiny_problem()
    >>> objective = augmented(standard, lambda image, key: image[::-1])
    >>> loss, _, _ = objective(network, images, labels, keys=keys, strength=1.0)
    >>> bool(loss[0] == losses.cross_entropy(images[:, ::-1], labels)[0])
    True

    Args:
      objective: any.
      augment: (image [*S], key) -> image of the same shape, in [0, 1] as the images
        of an attack must be. It runs compiled, under `jax.vmap`.

    Raises:
      ValueError: `augment` is not callable; when it runs: it changes the shape.
    """
    _check_objective(objective)
    if not callable(augment):
        raise ValueError(
            f"augment must be a function of an image and a key, got {augment!r}"
        )
    return _around(objective, _augmented, augment=augment)


def _check_objective(objective: object) -> None:
    if not callable(objective):
        raise ValueError(f"objective must be a function, got {objective!r}")


def _around(objective: Objective, run: Callable[..., Outcome], **bound: Any):
    """An objective that takes what `objective` takes, and runs `run` with it."""

    @functools.wraps(objective)
    def wrapped(network, images, labels, **options):
        return run(objective, network, images, labels, **bound, **options)

    return wrapped


def _weighted(
    objective: Objective,
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    weights: tuple[float, ...],
    **options: Any,
) -> Outcome:
    outputs = jax.eval_shape(network.inference(), images).shape[1]
    if outputs != len(weights):
        raise ValueError(
            f"class_weights must be one number for each of the {outputs} outputs of "
            f"the model, got {len(weights)}"
        )
    values, metrics, network = objective(network, images, labels, **options)
    each = jnp.asarray(weights, values.dtype)[labels]
    mean = network.mean(jnp.mean(each))
    return each / jnp.where(mean > 0, mean, 1) * values, metrics, network


def _augmented(
    objective: Objective,
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    *,
    augment: Augment,
    keys: jax.Array,
    **options: Any,
) -> Outcome:
    pairs = jax.vmap(jax.random.split)(keys)
    changed = jax.vmap(augment)(images, pairs[:, 0])
    if changed.shape != images.shape:
        raise ValueError(
            f"augment must keep the shape of an image, {list(images.shape[1:])}, got "
            f"{list(changed.shape[1:])}"
        )
    return objective(network, changed, labels, keys=pairs[:, 1], **options)
