"""Clean and robust accuracy of a model over a data set, sample by sample.

Every attack sees every image once. Sample i always draws from
``fold_in(key, i)``, i its index in the data set, so the table does not depend on
the batch size, the padding of the last batch or the number of devices (up to
floating-point reassociation). A verdict comes from a fresh forward pass of the
images that the attack returned, never from what the attack says of itself.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from robjax import inputs, lowering, storage
from robjax.data import Dataset, to_float

# Float32 rounding may leave the box by this much (absolute, in image units).
_BOX_TOLERANCE = 1e-5
# Rounding of x + δ may leave the ball by this much, relative and absolute.
_BALL_TOLERANCE = 1e-5
# Share of verdicts that reassociated floating-point sums may flip.
_BORDERLINE = 1e-3


class Estimate(NamedTuple):
    """A proportion and its binomial standard error, both in [0, 1]."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{100 * self.mean:6.2f} ± {100 * self.stderr:.2f} %"


class AttackTable(NamedTuple):
    """What one attack did to each of the N samples.

    robust: bool [N], classified correctly before *and* after the attack.
    first_success: int [N], first step that fooled the model; 0 start, -1 never.
    loss: [N], the attack's loss at the image it returned.
    distance: [N], size of the perturbation in the norm of the attack's ball.
    """

    robust: np.ndarray
    first_success: np.ndarray
    loss: np.ndarray
    distance: np.ndarray


class Evaluation(NamedTuple):
    """Per-sample table of an evaluation.

    labels: int [N].
    predictions: int [N], class of the unperturbed image; -1 where a logit is not
        finite, which counts as wrong.
    attacks: the table of each attack, by name.
    warnings: reasons to distrust the numbers, in words; empty if there are none.
    """

    labels: np.ndarray
    predictions: np.ndarray
    attacks: dict[str, AttackTable]
    warnings: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """Bool [N]: the unperturbed image is classified correctly."""
        return self.predictions == self.labels

    @property
    def robust(self) -> np.ndarray:
        """Bool [N]: correct under every attack (the pointwise worst case)."""
        verdicts = [table.robust for table in self.attacks.values()]
        return np.logical_and.reduce([self.correct, *verdicts])

    @property
    def accuracy(self) -> Estimate:
        """Accuracy on the unperturbed images."""
        return proportion(self.correct)

    def robust_accuracy(self, attack: str | None = None) -> Estimate:
        """Robust accuracy under one attack, or under all of them (the default)."""
        return proportion(
            self.robust if attack is None else self.attacks[attack].robust
        )

    def table(self) -> str:
        """The accuracies (mean ± standard error) and warnings as plain text."""
        rows = {"clean": self.accuracy}
        rows |= {name: self.robust_accuracy(name) for name in self.attacks}
        if len(self.attacks) > 1:
            rows["worst case"] = self.robust_accuracy()
        width = max(map(len, rows))
        lines = [f"accuracy on {len(self.labels)} images"]
        lines += [f"  {name:<{width}}  {rate}" for name, rate in rows.items()]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the per-sample table as an npz file, all or nothing.

        The columns are ``label``, ``prediction``, ``warnings`` and, for each attack,
        ``<name>/robust``, ``<name>/first_success``, ``<name>/loss`` and
        ``<name>/distance``.
        """
        columns = {
            "label": self.labels,
            "prediction": self.predictions,
            "warnings": np.asarray(self.warnings, dtype=str),
        }
        for name, table in self.attacks.items():
            columns |= {f"{name}/{k}": v for k, v in table._asdict().items()}
        storage.save_npz(path, columns)


def proportion(verdicts: np.ndarray) -> Estimate:
    """Share of true entries in a bool array [N], with its standard error."""
    mean = float(np.mean(verdicts))
    return Estimate(mean, float(np.sqrt(mean * (1 - mean) / len(verdicts))))


def evaluate(
    logits_fn: Callable[..., Any],
    data: Dataset | tuple[Any, Any],
    attacks: Mapping[str, Callable[..., Any]],
    *,
    key: jax.Array,
    batch_size: int = 256,
    bounds: inputs.Bounds = (0.0, 1.0),
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure clean and robust accuracy, sample by sample.

    Args:
        logits_fn: images [B, *S] -> logits [B, K].
        data: a `robjax.data.Dataset`, or (images [N, *S] floating, labels int [N]).
        attacks: name -> attack with its options bound, for example
            ``{"pgd": functools.partial(attacks.pgd, ball=Linf(0.3), steps=40)}``.
            Only untargeted attacks; an empty mapping measures clean accuracy alone.
            Arrays and the ε of a ball are traced, so another ε does not recompile;
            other options are static.
        key: one key; sample i draws from ``fold_in(key, i)``.
        batch_size: images at a time, over all devices together. The last batch is
            padded to this size, so that each attack compiles once.
        bounds: lowest and highest value of an image.
        devices: devices that share each batch; default: all local ones.
        progress: show a progress bar.

    Returns:
        The per-sample table, on the host.

    Raises:
        ValueError: an argument has a wrong shape, type or value. The message names
            it; the model has not been compiled by then.
    """
    logits_fn = inputs.as_logits_fn(logits_fn)
    bounds = inputs.check_bounds(bounds)
    images, labels, scale = _check_data(data, bounds)
    keys = inputs.sample_keys(key, len(labels))
    devices = jax.local_devices() if devices is None else list(devices)
    batch = _check_batch_size(batch_size, len(labels), len(devices))
    example = _prepare(images[:1], scale)
    example = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)
    _check_model(logits_fn, example, labels)
    for name, attack in attacks.items():
        _check_attack(name, attack, logits_fn, example, keys, bounds)

    mesh = Mesh(np.asarray(devices), ("batch",))
    logits_fn = jax.device_put(logits_fn, NamedSharding(mesh, PartitionSpec()))
    place = functools.partial(
        jax.device_put, device=NamedSharding(mesh, PartitionSpec("batch"))
    )
    split = {name: _split(attack) for name, attack in attacks.items()}
    rows = []
    for start in tqdm(range(0, len(labels), batch), "evaluate", disable=not progress):
        index = np.minimum(np.arange(start, start + batch), len(labels) - 1)
        x = _prepare(place(images[index]), scale)
        y, sample_keys = place((labels[index], keys[index]))
        clean, attacked = _predict(logits_fn, x, bounds)[0], {}
        for name, (numbers, options) in split.items():
            result = _attack(logits_fn, x, y, sample_keys, numbers, options, bounds)
            adversarial, outside = _predict(logits_fn, result.x_adv, bounds)
            distance = result.distance
            if (ball := _ball(attacks[name])) is not None:
                distance, beyond = _distance(ball, result.x_adv, x)
                outside = outside | beyond
            attacked[name] = (adversarial, outside, *result[1:4], distance)
        real = min(batch, len(labels) - start)
        rows.append(
            jax.tree.map(lambda a, n=real: np.asarray(a)[:n], (clean, attacked))
        )
    clean, attacked = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    return _assemble(labels, clean, {name: attacked[name] for name in attacks})


def _ball(attack: Callable[..., Any]) -> Any:
    return functools.partial(attack).keywords.get("ball")


@jax.jit
def _distance(ball, x_adv: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ball's norm of the change [B], and whether it is more than ε and rounding."""
    distance = ball.norm(x_adv - x)
    return distance, distance > ball.eps * (1 + _BALL_TOLERANCE) + _BALL_TOLERANCE


def _split(attack: Callable[..., Any]) -> tuple[tuple, tuple]:
    """Separate what is traced (arrays, the numbers of a ball) from what is static."""
    bound = functools.partial(attack)
    entries, tree = jax.tree.flatten_with_path((bound.args, bound.keywords))
    # The path of a number bound directly, as momentum=0.9, has two steps.
    traced = tuple(
        isinstance(leaf, np.ndarray | jax.Array)
        or (isinstance(leaf, float) and len(path) > 2)
        for path, leaf in entries
    )
    pairs = [(leaf, t) for (_, leaf), t in zip(entries, traced, strict=True)]
    numbers = tuple(leaf if t else None for leaf, t in pairs)
    static = tuple(None if t else leaf for leaf, t in pairs)
    return numbers, (bound.func, tree, static, traced)


@functools.partial(jax.jit, static_argnames=("options", "bounds"))
def _attack(logits_fn, x, y, keys, numbers, options, bounds):
    """Run an attack that `_split` took apart; values are tracers, so no checks."""
    function, tree, static, traced = options
    leaves = [n if t else s for n, s, t in zip(numbers, static, traced, strict=True)]
    args, keywords = jax.tree.unflatten(tree, leaves)
    return function(logits_fn, x, y, *args, **keywords, key=keys, bounds=bounds)


@functools.partial(jax.jit, static_argnames="bounds")
def _predict(logits_fn, x: jax.Array, bounds: inputs.Bounds):
    """Class [B], -1 where a logit is not finite, and whether an image is outside."""
    logits = lowering.fast(logits_fn, forward=True)(x)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    low, high = bounds[0] - _BOX_TOLERANCE, bounds[1] + _BOX_TOLERANCE
    inside = jnp.all((x >= low) & (x <= high), axis=tuple(range(1, x.ndim)))
    return jnp.where(finite, jnp.argmax(logits, axis=-1), -1), ~inside


def _assemble(labels, predictions, attacked: dict[str, tuple]) -> Evaluation:
    """Turn the raw columns into verdicts and warnings."""
    correct = predictions == labels
    notes = []
    if lost := np.count_nonzero(predictions < 0):
        notes.append(f"{lost} images have logits that are not finite; counted as wrong")
    if len(labels) > 1 and np.ptp(predictions) == 0 and np.ptp(labels) > 0:
        notes.append(f"every image is classified as {predictions[0]}")
    tables = {}
    for name, columns in attacked.items():
        adversarial, outside, success, loss, first, distance = columns
        robust = correct & (adversarial == labels)
        tables[name] = AttackTable(robust, first, loss, distance)
        if bad := np.count_nonzero(outside):
            notes.append(
                f"{name}: {bad} images returned outside the ball or the bounds"
            )
        if lost := np.count_nonzero((adversarial < 0) & (predictions >= 0)):
            notes.append(f"{name}: {lost} attacked images give logits not finite")
        wrong = np.count_nonzero(success != (adversarial != labels))
        if wrong > _BORDERLINE * len(labels):
            notes.append(f"{name}: {wrong} verdicts differ from the attack's own")
    return Evaluation(labels, predictions, tables, tuple(notes))


def _prepare(images, scale: float | None) -> jax.Array:
    """Floating images [B, *S]; ``scale`` is None if that is what they are already."""
    return jnp.asarray(images) if scale is None else to_float(images, scale)


def _check_data(data: Any, bounds: inputs.Bounds):
    """Images [N, *S] and int labels [N] on the host; the scale of integer images."""
    if isinstance(data, Dataset):
        images, scale = np.asarray(data.images), data.scale
        low, high = images.min(initial=0) / scale, images.max(initial=0) / scale
        if not (bounds[0] <= low and high <= bounds[1]):  # NaN fails too
            raise ValueError(
                f"data images must lie inside bounds {bounds}, got values from "
                f"{low:g} to {high:g}"
            )
        labels = inputs.check_labels(
            data.labels, len(images), num_classes=data.num_classes, name="data labels"
        )
        return images, np.asarray(labels), scale
    if not (isinstance(data, tuple) and len(data) == 2):
        kind = type(data).__name__
        raise ValueError(f"data must be a Dataset or (images, labels), got {kind}")
    images = inputs.check_images(data[0], bounds=bounds, name="data images")
    labels = inputs.check_labels(data[1], len(images), name="data labels")
    return np.asarray(images), np.asarray(labels), None


def _check_batch_size(batch_size: int, count: int, num_devices: int) -> int:
    """The batch size, no larger than needed, as a multiple of the device count."""
    if num_devices < 1:
        raise ValueError("devices must name at least one device, got none")
    batch = min(inputs.check_count("batch_size", batch_size), count)
    return -(-batch // num_devices) * num_devices


def _check_model(logits_fn, x: Any, labels: np.ndarray) -> None:
    """Trace the model once (nothing compiles); its classes must cover the labels."""
    classes = inputs.count_classes(logits_fn, x)
    if labels.max() >= classes:
        raise ValueError(
            f"data labels must be below {classes}, the number of classes of "
            f"logits_fn, got {labels.max()}"
        )


def _check_attack(
    name: str, attack: Any, logits_fn, x, keys: jax.Array, bounds
) -> None:
    """Trace an attack with its options concrete, so that it can judge their values."""
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}] must be callable, got {attack!r}")
    if functools.partial(attack).keywords.get("targeted", False):
        raise ValueError(f"attacks[{name!r}] must be untargeted, got {attack!r}")
    if (ball := _ball(attack)) is not None:
        eps = getattr(ball, "eps", None)
        inputs.check_number(f"attacks[{name!r}] ball.eps", eps, minimum=0)
    y = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    batch_keys = jax.ShapeDtypeStruct(x.shape[:1], keys.dtype)
    jax.eval_shape(
        lambda x, y, key: attack(logits_fn, x, y, key=key, bounds=bounds),
        *(x, y, batch_keys),
    )
