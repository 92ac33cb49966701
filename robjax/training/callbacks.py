"""What happens at the end of an epoch, beside the training: pairs of functions.

    init(weights) -> Kept                           before the training
    update(kept, end) -> Kept, {name: scalar}       before it and after each epoch

A callback is given what it kept last and what there is to know of the epoch
(`EpochEnd`). It returns what it keeps now and scalars that join the record of the
epoch. What it keeps may stop the training, and may replace the weights: callbacks after
it see those, and so do `TrainState.weights` and `training.load`. All of it is part of
the checkpoints, so a resumed run repeats what the uninterrupted one does.

    callbacks=[
        callbacks.evaluate(validation, {"PGD": pgd}, every=2),
        callbacks.best("validation_robust_accuracy", patience=5),
    ]

One that keeps nothing is a function for `fit`'s `on_epoch`. It is called first, so that
`best` may go by what it measures. With several processes each runs all callbacks.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import evaluation
from robjax.checks import check_count, check_text
from robjax.data import Dataset
from robjax.evaluation.arguments import check_attacks
from robjax.training.state import Kept
from robjax.training.trainable import Trainable, Variables

__all__ = ["Callback", "EpochEnd", "Kept", "best", "evaluate", "mean_weights"]


class EpochEnd(NamedTuple):
    """The end of an epoch, as a callback sees it.

    Attributes:
      epoch: its number; 0 before training.
      weights: variables to evaluate: the running mean if one is kept, or what a
        callback before has put in their place. They are copies on one device.
      record: scalars of the epoch so far, by name.
      model: see `robjax.training.trainable`.
    """

    epoch: int
    weights: Variables
    record: Mapping[str, Any]
    model: Trainable

    @property
    def logits_fn(self) -> Callable[[jax.Array], jax.Array]:
        """The function images -> logits with these weights, in inference mode."""
        return self.model.bind(self.weights)


class Callback(NamedTuple):
    """Two functions, see the file.

    >>> def count(kept, end):
    ...     seen = kept.memory["seen"] + 1
    ...     return kept._replace(memory={"seen": seen}), {"epochs_seen": int(seen)}
    >>> nothing = Kept(None, {"seen": np.array(0)}, np.array(False))
    >>> callback = Callback(init=lambda weights: nothing, update=count)

    Attributes:
      init: weights -> what it keeps at first. It sets the structure of all that it
        keeps later: names, shapes and dtypes.
      update: (kept, `EpochEnd`) -> what it keeps now, scalars for the record.
    """

    init: Callable[[Variables], Kept]
    update: Callable[[Kept, EpochEnd], tuple[Kept, Mapping[str, Any]]]


def best(
    metric: str, *, patience: int | None = None, mode: Literal["max", "min"] = "max"
) -> Callback:
    """Keeps the weights at which a metric was best, and may stop the training.

    The metric is looked for in the record of every epoch, that before training among
    them; epochs without it are passed over. The first of equally good ones counts. The
    record gets "best_epoch".

    >>> callback = best("accuracy", patience=1)
    >>> kept = callback.init({"w": jnp.zeros(1)})
    >>> for epoch, accuracy in enumerate([0.5, 0.7, 0.6]):
    ...     weights = {"w": jnp.full(1, float(epoch))}
    ...     end = EpochEnd(epoch, weights, {"accuracy": accuracy}, model=None)
    ...     kept, scalars = callback.update(kept, end)
    >>> scalars, kept.weights["w"].tolist(), bool(kept.stop)
    ({'best_epoch': 1}, [1.0], True)

    Args:
      metric: a name in the record of an epoch: a mean that training logs, as
        "accuracy", a scalar of `on_epoch` or of a callback before this one.
      patience: epochs without a better value after which training stops, at one that
        has the metric; None: it goes on to the end.
      mode: whether more or less is better.

    Raises:
      ValueError: an argument is out of range; in training: no epoch up to the first has
        the metric.
    """
    check_text("metric", metric)
    if patience is not None:
        check_count("patience", patience)
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    update = functools.partial(_best, metric=metric, patience=patience, mode=mode)
    return Callback(_best_so_far, update)


def _best_so_far(weights: Variables) -> Kept:
    memory = {"value": np.array(np.nan), "epoch": np.array(-1)}
    return Kept(jax.tree.map(jnp.copy, weights), memory, np.array(False))


def _best(
    kept: Kept, end: EpochEnd, *, metric: str, patience: int | None, mode: str
) -> tuple[Kept, Mapping[str, Any]]:
    before = kept.memory
    known = before["epoch"] >= 0
    if metric in end.record:
        value = float(end.record[metric])
        sign = 1 if mode == "max" else -1
        first = math.isnan(before["value"])
        if first or sign * value > sign * before["value"]:
            memory = {"value": np.array(value), "epoch": np.array(end.epoch)}
            return Kept(end.weights, memory, np.array(False)), {"best_epoch": end.epoch}
        waited = patience is not None and end.epoch - before["epoch"] >= patience
        kept = kept._replace(stop=np.array(waited))
    elif not known and "loss" in end.record:  # which the start of a run has not
        names = ", ".join(sorted(end.record))
        raise ValueError(f"metric must be one of {names}, got {metric!r}")
    return kept, {"best_epoch": int(before["epoch"])} if known else {}


def evaluate(
    data: Dataset,
    attacks: Mapping[str, Any],
    *,
    every: int = 1,
    name: str = "validation",
    seed: int = 0,
) -> Callback:
    """Measures the accuracy under attack, so that robust overfitting is seen.

    The record of every k-th epoch, that before training among them, gets
    "validation_accuracy" and "validation_robust_accuracy", the share of the images that
    no attack fools (`robjax.evaluation.evaluate`). A second one with the name "train",
    on a part of the training images, shows the other side of the gap.

    Args:
      data: images that are not trained on, as `data.split` sets them apart.
      attacks: by name, as for `robjax.evaluation.evaluate`.
      every: k, epochs from one measurement to the next.
      name: what the scalars begin with.
      seed: of the attacks' draws, which are the same in every epoch.

    Raises:
      ValueError: an argument is out of range.

    >>> from robjax.attacks import fgsm
    >>> from robjax.balls import Linf
    >>> from robjax.data import load, subset
    >>> attacks = {"FGSM": functools.partial(fgsm, ball=Linf(0.1))}
    >>> validation = evaluate(subset(load("digits", "test"), 50), attacks, every=5)
    """
    if not isinstance(data, Dataset):
        raise ValueError(
            "data must be a Dataset, as robjax.data.split sets one apart, got "
            f"{type(data).__name__}"
        )
    check_count("every", every)
    check_attacks(attacks)
    check_text("name", name)
    check_count("seed", seed, minimum=0)
    measure = functools.partial(
        _evaluate, data=data, attacks=dict(attacks), every=every, name=name, seed=seed
    )
    return Callback(_nothing, measure)


def _nothing(weights: Variables) -> Kept:
    del weights
    return Kept(None, {}, np.array(False))


def _evaluate(
    kept: Kept,
    end: EpochEnd,
    *,
    data: Dataset,
    attacks: Mapping[str, Any],
    every: int,
    name: str,
    seed: int,
) -> tuple[Kept, Mapping[str, Any]]:
    if end.epoch % every:
        return kept, {}
    found = evaluation.evaluate(
        end.logits_fn,
        data,
        attacks,
        key=jax.random.key(seed),
        cascade=True,
    )
    return kept, {
        f"{name}_accuracy": found.accuracy.mean,
        f"{name}_robust_accuracy": found.robust_accuracy().mean,
    }


def mean_weights(*, start: int = 1) -> Callback:
    """Averages the weights at the ends of epochs, from epoch `start` on (SWA).

    Izmailov et al., "Averaging weights leads to wider optima and better
    generalization", UAI 2018, with a cycle of one epoch; choose the learning rate,
    say constant, to go with it. Before `start` the weights are those of the epoch. The
    running statistics of batch norm are averaged, too; the paper computes them anew.

    >>> callback = mean_weights(start=1)
    >>> kept = callback.init({"w": jnp.zeros(1)})
    >>> for epoch in range(4):
    ...     end = EpochEnd(epoch, {"w": jnp.full(1, float(epoch))}, {}, model=None)
    ...     kept, _ = callback.update(kept, end)
    >>> kept.weights["w"].tolist()  # of the epochs 1, 2, 3
    [2.0]

    Args:
      start: the first epoch whose weights count.

    Raises:
      ValueError: `start` is not a whole number from 0.
    """
    check_count("start", start, minimum=0)

    def init(weights: Variables) -> Kept:
        count = {"count": np.array(0)}
        return Kept(jax.tree.map(jnp.copy, weights), count, np.array(False))

    def update(kept: Kept, end: EpochEnd) -> tuple[Kept, Mapping[str, Any]]:
        if end.epoch < start:
            return kept._replace(weights=end.weights), {}
        count = kept.memory["count"] + 1
        mean = jax.tree.map(
            lambda old, new: old + ((new - old) / count).astype(new.dtype),
            kept.weights,
            end.weights,
        )
        mean = end.weights if count == 1 else mean
        return kept._replace(weights=mean, memory={"count": np.array(count)}), {}

    return Callback(init, update)
