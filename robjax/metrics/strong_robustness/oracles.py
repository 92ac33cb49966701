"""What an oracle sees of images: a map g₂, and the distance that it gives.

    d₂'(x, x') = ‖g₂(x) − g₂(x')‖_p,    p = 1, 2 or inf        0 for some x ≠ x'

    identity    the image itself: a norm of the input
    linear      A₂x for a matrix A₂ that is given
    pca         the leading principal components of images
    features    what a function makes of images, such as a layer of another network

All of these are proxies. The oracle of the paper is a human being, or whatever else the
labels come from; nobody knows its map. Say which proxy was taken.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from robjax.arrays import check_array
from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import check_count, check_images, check_range
from robjax.metrics.finite import widened
from robjax.samples import flatten_samples
from robjax.traced import TracedCallable, traced

_BALLS: dict[float, Any] = {1: L1, 2: L2, np.inf: Linf}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity:
    """g₂(x) = x; made by `identity`.

    Attributes:
      norm: p.
    """

    norm: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, *S] -> [B, n]."""
        return flatten_samples(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """g₂(x) = A₂(x − c); made by `linear` and `pca`.

    Its arrays are NumPy's in float64; programs in float32 round them.

    Attributes:
      matrix: [M, n] A₂.
      basis: [R, n] orthonormal rows that span those of A₂.
      inverse: [n, M] A₂⁺.
      centre: [n] c, which plays no part in distances.
      norm: p.
    """

    matrix: Any
    basis: Any
    inverse: Any
    centre: Any
    norm: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, *S] -> [B, M]."""
        rows = flatten_samples(x) - self._like(self.centre[None], x)
        return _product(rows, self._like(self.matrix, x).T)

    def project(self, x: jax.Array) -> jax.Array:
        """The images without all that the oracle ignores; it sees no difference.

        >>> half = linear([[1.0, 0.0]])
        >>> half.project(jnp.array([[3.0, 5.0]])).tolist()
        [[3.0, 0.0]]

        Args:
          x: [B, *S] images.
        """
        centre, basis = self._like(self.centre[None], x), self._like(self.basis, x)
        seen = _product(flatten_samples(x) - centre, basis.T)
        return (centre + _product(seen, basis)).reshape(x.shape)

    @staticmethod
    def _like(values: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(values).astype(x.dtype)

    def __repr__(self) -> str:
        """The sizes, not the arrays."""
        size = "×".join(map(str, np.shape(self.matrix)))
        return f"Linear({size}, rank {len(self.basis)}, norm={self.norm:g})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """g₂ is a function; made by `features`.

    Attributes:
      fn: images [B, *S] -> [B, ...].
      norm: p.
    """

    fn: TracedCallable
    norm: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, *S] -> [B, M]."""
        return widened(flatten_samples(self.fn(x)))


Oracle = Identity | Linear | Features


def identity(*, norm: float = 2) -> Identity:
    """The oracle that sees every pixel: d₂' is a norm of the input.

    >>> float(oracle_distance(identity(norm=1), np.zeros((1, 2)), np.ones((1, 2)))[0])
    2.0

    Args:
      norm: 1, 2 or inf.

    Raises:
      ValueError: another norm.
    """
    return Identity(_check_norm(norm))


def linear(
    matrix: ArrayLike, *, norm: float = 2, tolerance: float | None = None
) -> Linear:
    """The oracle that sees A₂x of the flattened image, and ignores the kernel of A₂.

    >>> sees_first = linear([[1.0, 0.0]])
    >>> float(oracle_distance(sees_first, np.zeros((1, 2)), np.array([[0.0, 9.0]]))[0])
    0.0

    Args:
      matrix: [M, n] A₂, not 0.
      norm: 1, 2 or inf, of the difference of A₂x.
      tolerance: singular values up to this share of the largest count as 0; default
        max(M, n) times the rounding unit of the matrix.

    Raises:
      ValueError: the matrix is not [M, n] of finite real numbers or is 0, the tolerance
        is not in [0, 1), or the norm is another one.
    """
    given = np.asarray(check_array("matrix", matrix, "[M, n]"))
    unit = np.finfo(given.dtype if given.dtype.kind == "f" else float).eps
    usual = min(max(given.shape) * unit, 0.5)
    share = check_range(
        "tolerance", usual if tolerance is None else tolerance, 0, below=1
    )
    a = given.astype(float)
    left, values, right = np.linalg.svd(a, full_matrices=False)
    kept = values > share * values[0]
    if not values[0] > 0:
        raise ValueError("matrix must not be 0, for then the oracle sees nothing")
    inverse = (right[kept].T / values[kept]) @ left[:, kept].T
    return Linear(a, right[kept], inverse, np.zeros(a.shape[1]), _check_norm(norm))


def pca(images: ArrayLike, components: int, *, norm: float = 2) -> Linear:
    """The oracle that sees the leading principal components of images, and no more.

    g₂(x) = V(x − mean), V [components, n] orthonormal; exact, in float64.

    >>> images = np.array([[0.0, 0.5], [1.0, 0.5], [0.25, 0.5]])
    >>> first = pca(images, 1)
    >>> first, np.abs(first.matrix).tolist()
    (Linear(1×2, rank 1, norm=2), [[1.0, 0.0]])

    Args:
      images: [N, *S] floating-point images.
      components: how many, at most the rank of the centred images.
      norm: 1, 2 or inf, of the difference of the components.

    Raises:
      ValueError: malformed images, or too many components.
    """
    given = images if isinstance(images, jax.Array | np.ndarray) else np.asarray(images)
    rows = np.asarray(flatten_samples(check_images(given, name="images")), float)
    check_count("components", components)
    centre = rows.mean(axis=0)
    covariance = (rows - centre).T @ (rows - centre)
    values, vectors = np.linalg.eigh(covariance)
    scale = max(values[-1], 0)
    rank = int((values > len(values) * np.finfo(float).eps * scale).sum())
    if components > rank:
        raise ValueError(
            f"components must be at most {rank}, the rank of the images, got "
            f"{components}"
        )
    found = linear(vectors[:, ::-1][:, :components].T, norm=norm)
    return dataclasses.replace(found, centre=centre)


def features(fn: Callable[..., jax.Array], *, norm: float = 2) -> Features:
    """The oracle that sees what a function makes of images.

    >>> squares = features(lambda x: x**2)
    >>> float(oracle_distance(squares, np.ones((1, 2)), -np.ones((1, 2)))[0])
    0.0

    Args:
      fn: images [B, *S] -> floating-point [B, ...], which is flattened; a layer of
        another network, say.
      norm: 1, 2 or inf.

    Raises:
      ValueError: `fn` is not callable, or the norm is another one.
    """
    if not callable(fn):
        raise ValueError(f"fn must be a function of images, got {fn!r}")
    return Features(traced(fn, name="oracle"), _check_norm(norm))


def check_oracle(oracle: object, x: jax.Array, *, name: str = "oracle") -> Oracle:
    """Makes an oracle of any callable, and checks that it fits the images.

    >>> check_oracle(lambda x: x[:, :1], jnp.ones((2, 3))).norm
    2
    >>> check_oracle(linear([[1.0, 0.0]]), jnp.ones((2, 3)))
    Traceback (most recent call last):
      ...
    ValueError: oracle must have a matrix of 3 columns, got Linear(1×2, rank 1, norm=2)

    Args:
      oracle: made by `identity`, `linear`, `pca` or `features`, or a function as given
        to the latter, with the norm 2.
      x: [B, *S] images.
      name: what the caller calls `oracle`, for the message.

    Raises:
      ValueError: it is none, or does not fit.
    """
    pixels = x[0].size
    if isinstance(oracle, Identity):
        return oracle
    if isinstance(oracle, Linear):
        if np.shape(oracle.matrix)[1] != pixels:
            raise ValueError(
                f"{name} must have a matrix of {pixels} columns, got {oracle!r}"
            )
        return oracle
    if not callable(oracle):
        raise ValueError(f"{name} must be a function of images, got {oracle!r}")
    given = cast(Callable[..., jax.Array], oracle)
    found = oracle if isinstance(oracle, Features) else features(given)
    seen = jax.eval_shape(found.fn, x)
    shaped = isinstance(seen, jax.ShapeDtypeStruct) and seen.shape[:1] == (len(x),)
    if not (shaped and seen.ndim > 1 and jnp.issubdtype(seen.dtype, jnp.floating)):
        raise ValueError(
            f"{name} must return one floating-point array [{len(x)}, ...], got {seen}"
        )
    return found


def oracle_distance(oracle: Oracle, x: ArrayLike, x_prime: ArrayLike) -> jax.Array:
    """d₂' [B] between images; linear maps are applied to the difference, in float64.

    >>> x = np.zeros((1, 2))
    >>> round(float(oracle_distance(identity(), x, x + 1)[0]), 4)
    1.4142

    Args:
      oracle: made by one of the functions above.
      x, x_prime: [B, *S] images.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x = check_images(x)
    x_prime = check_images(x_prime, name="x_prime")
    if x.shape != x_prime.shape:
        raise ValueError(
            f"x_prime must have the shape of x, {x.shape}, got {x_prime.shape}"
        )
    oracle = check_oracle(oracle, x)
    traced_ = isinstance(x, jax.core.Tracer) or isinstance(x_prime, jax.core.Tracer)
    if not (traced_ or isinstance(oracle, Features)):
        change = np.asarray(x_prime, float) - np.asarray(x, float)
        change = change.reshape(len(change), -1)
        if isinstance(oracle, Linear):
            change = change @ np.asarray(oracle.matrix).T
        return jnp.asarray(np.linalg.norm(change, oracle.norm, axis=1))
    return distance_inside(oracle, jnp.asarray(x), jnp.asarray(x_prime))


def distance_inside(oracle: Oracle, x: jax.Array, x_prime: jax.Array) -> jax.Array:
    """d₂' [B] in the precision of the images, also inside a trace.

    >>> distance_inside(identity(norm=np.inf), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    Array([1.], dtype=float32)
    """
    return ball_of(oracle, 0.0).norm(difference(oracle, x, x_prime))


def difference(oracle: Oracle, x: jax.Array, x_prime: jax.Array) -> jax.Array:
    """g₂(x') − g₂(x) [B, M], for linear maps that of the difference.

    >>> difference(linear([[1.0, 2.0]]), jnp.ones((1, 2)), jnp.zeros((1, 2))).tolist()
    [[-3.0]]
    """
    if isinstance(oracle, Features):
        return oracle(x_prime) - oracle(x)
    change = flatten_samples(x_prime - x)
    if isinstance(oracle, Identity):
        return change
    return _product(change, jnp.asarray(oracle.matrix).astype(x.dtype).T)


def ball_of(oracle: Oracle, radius: Any) -> Ball:
    """The ball of the oracle's norm.

    >>> ball_of(identity(norm=np.inf), 0.1)
    Linf(eps=0.1)
    """
    return _BALLS[oracle.norm](radius)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _check_norm(norm: object) -> float:
    number = isinstance(norm, numbers.Real) and not isinstance(norm, bool)
    if not number or norm not in _BALLS:
        raise ValueError(f"norm must be 1, 2 or inf, got {norm!r}")
    return next(p for p in _BALLS if p == norm)
