"""Directions of images that a classifier uses and an oracle ignores."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import lowering
from robjax.checks import check_count, check_range
from robjax.metrics.finite import check_measured, widened
from robjax.metrics.fisher import logits_and_jacobian
from robjax.metrics.strong_robustness.oracles import (
    Features,
    Identity,
    Linear,
    Oracle,
    check_oracle,
)
from robjax.metrics.strong_robustness.worst_case import jacobian_of
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import finite_or_zero
from robjax.samples import is_concrete
from robjax.traced import TracedCallable


class UnnecessaryDirections(NamedTuple):
    """Unnecessary features of a classifier, the strongest first.

    Attributes:
      directions: [C, *S] orthonormal images that the oracle ignores; the sign means
        nothing. 0 where the classifier uses no further direction.
      strength: [C] Σ_k (∂z_k/∂v)² in the mean over images, z the centred logits.
      share: [C] strength over that of all directions together.
      ignored: the share of all directions that the oracle ignores.
    """

    directions: np.ndarray
    strength: np.ndarray
    share: np.ndarray
    ignored: float

    def __repr__(self) -> str:
        """The shares; not the arrays."""
        if not is_concrete(self.share):
            return "UnnecessaryDirections(traced)"
        return (
            f"UnnecessaryDirections({len(self.share)} with {self.share.sum():.1%} of "
            f"the squared gradient; all that the oracle ignores: {self.ignored:.1%})"
        )


def unnecessary_directions(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    *,
    oracle: Any,
    count: int,
    tolerance: float = 1e-6,
    batch_size: int = 64,
) -> UnnecessaryDirections:
    """Ranks the directions that a classifier uses and the oracle ignores.

    With the centred logits z_k − mean z and their Jacobian J₁(x) [K, n],

        C = P (mean over images of J₁ᵀJ₁) P,    P onto what the oracle ignores.

    The directions are its leading eigenvectors, which are the right singular vectors of
    all input gradients stacked and projected. The oracle ignores

    * `Linear`: the kernel of A₂, exactly;
    * `Features`: the eigenvectors of the mean of J₂ᵀJ₂ with eigenvalues up to
      `tolerance` of the largest, so what it ignores at all of the images;
    * `Identity`: nothing.

    It costs K backward passes for each image (and M of g₂), n² numbers of memory and an
    eigenvalue problem of that size in float64.

    >>> from robjax.metrics.strong_robustness import linear
    >>> weights = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]).T
    >>> found = unnecessary_directions(
    ...     lambda x: x @ weights,
    ...     jnp.ones((1, 3)),
    ...     oracle=linear([[1.0, 0.0, 0.0]]),
    ...     count=1,
    ... )
    >>> found, np.abs(found.directions).round(6).tolist()  # 2² of 1² + 2²
    (UnnecessaryDirections(1 with 80.0% of the squared gradient; all that the oracle \
ignores: 80.0%), [[0.0, 0.0, 1.0]])

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images.
      oracle: made by `identity`, `linear`, `pca` or `features`; or a function.
      count: C, at most n.
      tolerance: see above, from 0 to below 1.
      batch_size: images per chunk, bounds the memory.

    Raises:
      ValueError: an argument is malformed, or inside `jax.jit`.
    """
    x = check_measured(x)
    if not is_concrete(x):
        raise ValueError("x must have values, got a tracer: call this outside jax.jit")
    model = as_logits_fn(logits_fn)
    count_classes(model, x)
    oracle = check_oracle(oracle, x)
    check_range("tolerance", tolerance, 0, below=1)
    check_count("batch_size", batch_size)
    pixels = x[0].size
    if check_count("count", count) > pixels:
        raise ValueError(f"count must be at most {pixels}, got {count}")
    used = _mean_square(_logit_rows, model, x, batch_size)
    seen = _seen(oracle, x, tolerance, batch_size)
    total = np.trace(used)
    for _ in range(2):  # once leaves its rounding in the row space
        used = used - seen.T @ (seen @ used)
        used = used - (used @ seen.T) @ seen
    values, vectors = np.linalg.eigh((used + used.T) / 2)
    strength = np.maximum(values[::-1][:count], 0)
    real = strength > pixels * np.finfo(np.float32).eps * total
    rows = np.where(real[:, None], vectors[:, ::-1][:, :count].T, 0)
    scale = total if total > 0 else 1.0
    return UnnecessaryDirections(
        directions=rows.reshape(count, *x.shape[1:]),
        strength=np.where(real, strength, 0),
        share=np.where(real, strength, 0) / scale,
        ignored=float(np.clip(np.trace(used) / scale, 0, 1)),
    )


def _seen(
    oracle: Oracle, x: jax.Array, tolerance: float, batch_size: int
) -> np.ndarray:
    """Orthonormal rows [R, n] that span what the oracle does not ignore."""
    if isinstance(oracle, Identity):
        return np.eye(x[0].size)
    if isinstance(oracle, Linear):
        return np.asarray(oracle.basis)
    values, vectors = np.linalg.eigh(_mean_square(_feature_rows, oracle, x, batch_size))
    return vectors[:, values > tolerance * max(values[-1], 0)].T


def _logit_rows(model: TracedCallable, x: jax.Array) -> jax.Array:
    _, jacobian = logits_and_jacobian(lambda x: widened(model(x)), x)
    jacobian = finite_or_zero(jacobian)
    return jacobian - jnp.mean(jacobian, axis=1, keepdims=True)


def _feature_rows(oracle: Features, x: jax.Array) -> jax.Array:
    return jacobian_of(oracle, x)


@functools.partial(jax.jit, static_argnums=0)
def _gram(rows: Any, fn: Any, x: jax.Array) -> jax.Array:
    """Σ JᵀJ [n, n] over images."""
    jacobian = lowering.exact(functools.partial(rows, fn), forward=False)(x)
    return jnp.einsum("bki,bkj->ij", jacobian, jacobian, precision="highest")


def _mean_square(rows: Any, fn: Any, x: jax.Array, batch_size: int) -> np.ndarray:
    """The mean of JᵀJ over images, summed in float64; at most two sizes compile."""
    starts = range(0, len(x), batch_size)
    parts = [np.asarray(_gram(rows, fn, x[i : i + batch_size]), float) for i in starts]
    return sum(parts, np.zeros_like(parts[0])) / len(x)
