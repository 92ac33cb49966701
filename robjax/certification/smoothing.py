"""Randomised smoothing: a certificate for any model, of its answers under noise.

The smoothed classifier answers with the class that the model gives most often under
Gaussian noise, g(x) = argmax_c P(f(x + σ η) = c). If P(f(x + σ η) = c) ≥ p > ½, then g
is c on the whole L2 ball of radius σ Φ⁻¹(p) around x, without any box.

The class is guessed from n0 draws, and p is bounded from below by Clopper and Pearson's
exact binomial interval from n further draws. So each certificate is wrong with
probability at most α. Where the bound is not above ½, it abstains.

Cohen, Rosenfeld & Kolter, ICML 2019, arXiv 1902.02918, algorithm CERTIFY.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from scipy import special

from robjax import lowering
from robjax.checks import (
    check_count,
    check_images,
    check_labels,
    check_number,
    check_range,
    is_half,
)
from robjax.evaluation.sharding import (
    SHARED,
    SPLIT,
    Device,
    make_mesh,
    over_devices,
    place,
)
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.runs import files, preemption
from robjax.runs.files import PathLike
from robjax.runs.processes import joined
from robjax.runs.provenance import checksum, identify, open_run
from robjax.samples import is_concrete, sample_keys
from robjax.traced import TracedCallable

ABSTAIN = -1
_PROBED = 8  # images whose logits are part of the description of a run


class Smoothed(NamedTuple):
    """What is certain of a smoothed classifier at B images.

    Attributes:
      prediction: [B] int, the class; −1 where it abstains.
      radius: [B] L2 radius in units of the image within which that is its answer; 0
        where it abstains.
    """

    prediction: np.ndarray
    radius: np.ndarray

    def __repr__(self) -> str:
        if not is_concrete(self.radius):
            return "Smoothed(traced)"
        sure = self.prediction != ABSTAIN
        return (
            f"Smoothed({len(sure)} images, {np.count_nonzero(~sure)} abstained, median "
            f"radius {np.median(self.radius):.3g})"
        )


def certify(
    logits_fn: LogitsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    batch_size: int = 256,
    devices: Sequence[Device] | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
) -> Smoothed:
    """Finds the class of the smoothed classifier, and how far it is certain.

    The model is called with n0 + n noisy images for each image, not clipped to a box.
    Draw j of an image depends on its key and j alone, on any number of devices.
    Several processes share the images.

    >>> def by_first_pixel(x):
    ...     return jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)
    >>> certify(
    ...     by_first_pixel, jnp.array([[0.9, 0.3]]), key=jax.random.key(0), sigma=0.1,
    ...     n0=10, n=1000,
    ... )  # all draws agree
    Smoothed(1 images, 0 abstained, median radius 0.246)

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable.
      x: [B, *S] images; those of half precision become float32, since noise of so few
        values has no tails.
      key: one key, or one for each image; of one, image i draws from ``fold_in(key,
        i)``.
      sigma: σ > 0, standard deviation of the noise in units of the image.
      n0: draws for the guess of the class.
      n: draws for the bound of its probability.
      alpha: α in (0, 1), the probability that a certificate may be wrong.
      batch_size: noisy images at a time, on each device.
      devices: that share the draws of each image; default: all local ones.
      run_dir: folder in which the counts of each image are kept when it is done, a
        file each.
      resume: go on with the run in `run_dir`, which must be of this model, data, key,
        σ, n0 and n; α may be another.

    Raises:
      ValueError: an argument is malformed; the message names it. Or `run_dir` holds a
        run and `resume` is False, or it holds another run.
      Preempted: SIGTERM came; the counts of the images that were done are in `run_dir`.
    """
    model = as_logits_fn(logits_fn)
    x = check_images(x)
    if is_half(x.dtype):
        x = x.astype(jnp.float32)
    check_number("sigma", sigma, minimum=float(np.finfo(np.float32).tiny))
    check_range("alpha", alpha, 0, below=1)
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha!r}")
    for name, value in (("n0", n0), ("n", n), ("batch_size", batch_size)):
        check_count(name, value)
    classes = count_classes(model, x[:1])
    keys = sample_keys(key, len(x))
    mesh = make_mesh(devices)
    count = functools.partial(
        _counts,
        place(model, mesh, SHARED),
        sigma=sigma,
        classes=classes,
        batch_size=batch_size,
        mesh=mesh,
    )

    def look(image: jax.Array, own: jax.Array) -> dict[str, np.ndarray]:
        guess = np.argmax(count(image, own, _shares(0, n0, mesh)))
        hits = np.asarray(count(image, own, _shares(n0, n, mesh))[guess])
        return {"guess": guess, "hits": hits}

    about = functools.partial(_description, model, x, keys, sigma=sigma, n0=n0, n=n)
    with joined("smoothing", about) as group, preemption.watch(run_dir) as notice:
        folder = open_run(
            run_dir, about, parts="[0-9]*.npz", resume=resume, group=group
        )

        def counted(i: int) -> tuple[int, int]:
            path = folder and folder / f"{i:06d}.npz"
            found = path and files.load_part(path, ("guess", "hits"))
            if not found:
                found = look(x[i], keys[i])
                if path:
                    files.save_npz(path, found)
            return int(found["guess"]), int(found["hits"])

        counts = group.map(counted, range(len(x)), each_turn=notice.leave)
    prediction = np.full(len(x), ABSTAIN)
    radius = np.zeros(len(x))
    for i, (guess, hits) in enumerate(counts):
        lowest = lower_confidence(hits, n, alpha)
        if lowest > 0.5:
            prediction[i] = guess
            radius[i] = sigma * special.ndtri(lowest)
    return Smoothed(prediction, radius)


def _description(
    model: TracedCallable, x: jax.Array, keys: jax.Array, **options: float
) -> dict[str, Any]:
    """What decides the counts of a run, so that two runs can be compared."""
    return {
        "model": identify(model),
        "model_outputs": np.asarray(jax.jit(lowering.exact(model))(x[:_PROBED])),
        "data": f"{list(x.shape)} {checksum(x)}",
        "key": checksum(keys),
        **options,
    }


def _shares(first: int, draws: int, mesh: Mesh) -> np.ndarray:
    """The first draw of each device, and how many there are for it, [devices, 2]."""
    ends = first + np.arange(mesh.size + 1) * draws // mesh.size
    return np.stack([ends[:-1], np.diff(ends)], axis=1)


@functools.partial(jax.jit, static_argnames=("classes", "batch_size", "mesh"))
def _counts(
    model: TracedCallable,
    image: jax.Array,
    key: jax.Array,
    shares: jax.Array,
    *,
    sigma: jax.Array,
    classes: int,
    batch_size: int,
    mesh: Mesh,
) -> jax.Array:
    """How often the model gives each class, [K], in the draws that `shares` names."""

    def some(model: TracedCallable, noisy: jax.Array) -> jax.Array:
        logits = model(noisy)
        finite = jnp.all(jnp.isfinite(logits), axis=1)
        return jnp.where(finite, jnp.argmax(logits, axis=1), ABSTAIN)

    def on_device(
        model: TracedCallable,
        image: jax.Array,
        key: jax.Array,
        sigma: jax.Array,
        share: jax.Array,
    ) -> jax.Array:
        first, draws = share[0]

        def add(chunk: jax.Array, counts: jax.Array) -> jax.Array:
            index = chunk * batch_size + jnp.arange(batch_size)
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + index)
            normal = functools.partial(jax.random.normal, shape=image.shape)
            noise = jax.vmap(lambda k: normal(k, dtype=image.dtype))(keys)
            given = lowering.exact(some)(model, image[None] + sigma * noise)
            given = jnp.where(index < draws, given, ABSTAIN)
            return counts + jnp.sum(given[:, None] == jnp.arange(classes)[None], axis=0)

        chunks = (draws + batch_size - 1) // batch_size
        return lax.fori_loop(0, chunks, add, jnp.zeros(classes, int))[None]

    specs = (SHARED, SHARED, SHARED, SHARED, SPLIT)
    shared = over_devices(on_device, mesh, specs)
    return shared(model, image, key, sigma, shares).sum(axis=0)


def lower_confidence(hits: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """Clopper and Pearson's lower bound of a probability, exact at level 1 − α.

    It is the p with P(Binomial(n, p) ≥ hits) = α; 0 for no hits.

    >>> round(float(lower_confidence(1000, 1000, 0.001)), 6)  # α^(1/n)
    0.993116

    Args:
      hits: how often, of n.
      n: number of draws.
      alpha: α.
    """
    hits = np.asarray(hits)
    bound = special.betaincinv(np.maximum(hits, 1), n - hits + 1, alpha)
    return np.where(hits > 0, bound, 0.0)


def certified_accuracy(
    smoothed: Smoothed, y: ArrayLike, radii: ArrayLike
) -> np.ndarray:
    """The share of images that are right, and certain up to each radius, [R].

    >>> found = Smoothed(np.array([1, 0, -1]), np.array([0.5, 0.2, 0.0]))
    >>> certified_accuracy(found, [1, 1, 0], [0.0, 0.5, 0.6]).round(3).tolist()
    [0.333, 0.333, 0.0]

    Args:
      smoothed: made by `certify`.
      y: [B] integer labels.
      radii: [R] L2 radii.

    Raises:
      ValueError: the labels are malformed.
    """
    y = check_labels(y, len(smoothed.radius))
    right = smoothed.prediction == np.asarray(y)
    reach = smoothed.radius[None] >= np.asarray(radii)[:, None]
    return (right[None] & reach).mean(axis=1)
