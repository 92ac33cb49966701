"""DeepCloak: masks the features that adversarial images change most.

Gao, Wang, Lin, Xu and Qi, "DeepCloak: masking deep neural network models for robustness
against adversarial samples", ICLR 2017 workshop (arXiv 1702.06763). Of a trained
network, cut into features g and the classifier c on them, images x and their
adversarial versions x':

    score_j = Σ_x |g_j(x') − g_j(x)|          j = 1 … F, over training images
    f_mask(x) = c(mask ⊙ g(x))                the largest scores are masked

Nothing is trained again, and what is kept is not scaled up.

    feature_scores    score [F]
    mask_of           which features are kept
    masked            f_mask, a model like any other
    random_mask       the control: as many features, drawn at random

**What to expect.** The paper judges f_mask on images made against the unmasked network.
That is transfer. An attacker who knows the mask attacks `masked(...)` itself, and its
gradient is that of f_mask. The features that change most are often the useful ones, so
report clean accuracy, too.

**Features of a network.** Of robjax's own deep models they are the tap "features", and
c is the last layer, a `models.Linear`:

    features_fn = Partial(taps.Tap(model, "features"), variables)
    last = {"params": {"logits": variables["params"]["logits"]}}
    head_fn = Partial(models.Linear(10).apply, last)
    scores = feature_scores(features_fn, x, x_adv)
    logits_fn = masked(features_fn, head_fn, mask_of(scores, 5))

Differences from the authors' code:

* It masks everything that is tied with the last feature to mask. Here the number is
  exact.
* It makes x' with the network in train mode, and does not clip it. Here x' is given.
* Its mask layer lets the gradient of masked features through. Here that is 0.
* It fails for F < 100 at 1 %. Here that masks no feature.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from robjax import advice
from robjax.checks import check_count, check_images, check_number, check_range
from robjax.metrics.finite import check_measured, widened
from robjax.numerics import map_batched
from robjax.samples import sample_keys
from robjax.traced import TracedCallable, traced

FeaturesFn = Callable[[jax.Array], jax.Array]
"""Images [B, *S] -> features [B, F]."""

HeadFn = Callable[[jax.Array], jax.Array]
"""Features [B, F] -> logits [B, K]."""


def feature_scores(
    features_fn: FeaturesFn, x: jax.Array, x_adv: jax.Array, *, batch_size: int = 256
) -> jax.Array:
    """How much adversarial images change each feature: Σ_x |g_j(x') − g_j(x)|.

    Scores of several sets of images add up to those of all of them.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> feature_scores(lambda x: 10 * x, x, x.at[0, 1].add(1)).tolist()
    [0.0, 10.0]

    Args:
      features_fn: images [B, *S] -> features [B, F].
      x: [B, *S] images.
      x_adv: [B, *S] their adversarial versions.
      batch_size: images per chunk, bounds the memory.

    Returns:
      [F], 0 for a feature that never moves, such as a dead ReLU.

    Raises:
      ValueError: malformed images, x_adv has another shape than x, or what
        `features_fn` returns is not floating [B, F].
    """
    features = _traced(features_fn, "features_fn")
    x = check_measured(x)
    x_adv = check_images(x_adv, name="x_adv").astype(x.dtype)
    if x_adv.shape != x.shape:
        raise ValueError(
            f"x_adv must have the shape of x, {x.shape}, got {x_adv.shape}"
        )
    rows = check_count("batch_size", batch_size)
    try:
        _scores.eval_shape(features, x, x_adv, rows)
    except Exception:
        if not features.close():  # it may need the values in its closure
            raise
    return _scores(features, x, x_adv, rows)


@functools.partial(jax.jit, static_argnums=3)
def _scores(
    features_fn: TracedCallable, x: jax.Array, x_adv: jax.Array, batch_size: int
) -> jax.Array:
    def change(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, after = (widened(_features(features_fn, v)) for v in pair)
        return jnp.abs(after - before)

    return jnp.sum(map_batched(change, (x, x_adv), batch_size), axis=0)


def mask_of(scores: ArrayLike, percent: ArrayLike) -> jax.Array:
    """Keeps all features but those of the largest scores.

    Exactly ⌊F · percent/100⌋ features are masked; of equal scores the first ones. With
    percent = 100 k/F these are k.

    >>> mask_of([3.0, 0.0, 5.0, 5.0], 50).tolist()
    [True, True, False, False]
    >>> mask_of([3.0, 0.0, 5.0, 5.0], 25).tolist()
    [True, True, False, True]

    Args:
      scores: [F] finite numbers.
      percent: share of the features to mask, 0 to 100.

    Returns:
      [F] bool, True for features that are kept.

    Raises:
      ValueError: the scores are not [F] finite numbers, or percent is out of range.
    """
    values = jnp.asarray(scores)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"scores must be non-empty [F], got shape {values.shape}")
    check_range("scores", values)
    order = jnp.argsort(values, descending=True, stable=True)
    return jnp.argsort(order) >= _count(values.size, percent)


def random_mask(key: jax.Array, num_features: int, percent: ArrayLike) -> jax.Array:
    """The control: masks as many features as `mask_of`, drawn at random.

    >>> int(random_mask(jax.random.key(0), 200, 5).sum())
    190

    Args:
      key: one key.
      num_features: F.
      percent: as in `mask_of`.

    Returns:
      [F] bool, True for features that are kept.

    Raises:
      ValueError: a malformed key, F below 1, or percent is out of range.
    """
    size = check_count("num_features", num_features)
    masked_first = jax.random.permutation(sample_keys(key, 1)[0], size)
    return masked_first >= _count(size, percent)


def masked(features_fn: FeaturesFn, head_fn: HeadFn, mask: ArrayLike) -> Partial:
    """The network with masked features: a `logits_fn` for every attack and metric.

    The mask is traced, so another one compiles nothing. The gradient flows through the
    mask.

    >>> logits_fn = masked(lambda x: x, lambda g: 2 * g, jnp.array([True, False]))
    >>> logits_fn(jnp.array([[1.0, 2.0]])).tolist()
    [[2.0, 0.0]]

    Args:
      features_fn: images [B, *S] -> features [B, F].
      head_fn: features [B, F] -> logits [B, K].
      mask: [F] bool, False for features that become 0.

    Returns:
      Images [B, *S] -> logits [B, K].

    Raises:
      ValueError: a function is none, the mask is not bool [F]; in the call: what
        `features_fn` returns is not floating [B, F], or F not that of the mask.
    """
    kept = jnp.asarray(mask)
    if kept.ndim != 1 or not kept.size or kept.dtype != bool:
        raise ValueError(f"mask must be bool [F], got {kept.dtype} {kept.shape}")
    parts = _traced(features_fn, "features_fn"), _traced(head_fn, "head_fn")
    return Partial(_masked, *parts, kept)


def _masked(
    features_fn: TracedCallable, head_fn: TracedCallable, mask: jax.Array, x: jax.Array
) -> jax.Array:
    features = _features(features_fn, x)
    if features.shape[1] != len(mask):
        raise ValueError(
            f"mask must have one entry for each of {features.shape[1]} features, got "
            f"{len(mask)}"
        )
    return head_fn(jnp.where(mask[None], features, 0))


def _features(features_fn: TracedCallable, x: jax.Array) -> jax.Array:
    """The features, their shape and dtype checked."""
    features = features_fn(x)
    if not isinstance(features, jax.Array):
        raise ValueError(
            f"features_fn must return one array, got {type(features).__name__}"
        )
    if features.ndim != 2 or len(features) != len(x) or not features.size:
        raise ValueError(
            f"features_fn must return features [{len(x)}, F] for a batch of {len(x)}, "
            f"got shape {features.shape}"
        )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(
            f"features_fn must return floating-point features, got {features.dtype}"
        )
    return features


def _count(size: int, percent: ArrayLike) -> jax.Array:
    """⌊size · percent/100⌋, also where the product is rounded."""
    check_range("percent", check_number("percent", percent), 0, 100)
    return jnp.floor(jnp.asarray(percent) * (size / 100) * (1 + 1e-6))


def _traced(fn: Callable[[jax.Array], jax.Array], name: str) -> TracedCallable:
    refused = advice.refusal(fn) if callable(fn) else f"must be callable, got {fn!r}"
    if refused is not None:
        raise ValueError(f"{name} {refused}")
    return traced(fn, name=name)
