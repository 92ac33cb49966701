"""What all corruptions share: severities, checks, and one compiled program for a kind.

A kind is written for one image [H, W, C], with a traced severity:

    one(image, key, level) -> image

`level` looks its parameters up. So a kind compiles once for a shape of images, whatever
the severity. What sizes arrays, such as the reach of a blur, is the largest of all.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax.checks import check_attacked
from robjax.samples import sample_keys

Corruption = Callable[..., jax.Array]
"""(x [B, H, W, C] in [0, 1], *, key, severity) -> images of the same shape."""

SMALLEST = 8
"""Pixels of the shortest side that is allowed."""

_LARGE = 128  # from this side on the parameters are those of ImageNet-C

Row = Sequence[float] | float


class Level(NamedTuple):
    """A severity from 1 to 5, for images of one size.

    Attributes:
      severity: traced.
      side: shorter side of the image in pixels, static.
    """

    severity: jax.Array
    side: int

    @property
    def unit(self) -> float:
        """What lengths of the tables are multiplied by."""
        return self.side / 224 if self.side >= _LARGE else max(1.0, self.side / 32)

    def table(self, cifar: Sequence[Row], imagenet: Sequence[Row]) -> np.ndarray:
        """The five rows for images of this size."""
        return np.array(imagenet if self.side >= _LARGE else cifar, np.float32)

    def pick(self, cifar: Sequence[Row], imagenet: Sequence[Row]) -> Any:
        """The parameters of this severity: one number, or several.

        >>> level = Level(jnp.int32(2), side=32)
        >>> float(level.pick([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]))
        2.0
        """
        return jnp.asarray(self.table(cifar, imagenet))[self.severity - 1]


One = Callable[[jax.Array, jax.Array, Level], jax.Array]
"""(image [H, W, C], key, level) -> image [H, W, C], also outside [0, 1]."""


def corrupt(
    one: One, x: object, key: object, severity: ArrayLike, *, draws: bool = True
) -> jax.Array:
    """Checks images, and corrupts each of them.

    >>> darker = lambda image, key, level: image / (1 + level.severity)
    >>> x = jnp.full((1, 8, 8, 1), 0.5)
    >>> float(corrupt(darker, x, None, 3, draws=False)[0, 0, 0, 0])
    0.125

    Args:
      one: what happens to one image; the same object in every call, or it compiles
        anew.
      x: [B, H, W, C] floating-point images in [0, 1], H and W at least 8.
      key: one key, or one for each image.
      severity: 1 to 5, a whole number or [B] of them.
      draws: the corruption is random; otherwise no key is needed.

    Returns:
      [B, H, W, C], float32 or better, in [0, 1].

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x = check_attacked(x, (0.0, 1.0))
    if x.ndim != 4 or min(x.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"x must be [B, H, W, C] with H and W at least {SMALLEST}, got shape "
            f"{x.shape}"
        )
    severity = _check_severity(severity, len(x))
    if key is None and not draws:
        key = jax.random.key(0)
    return _corrupt(x, sample_keys(key, len(x)), severity, one=one)


def _check_severity(severity: Any, batch_size: int) -> jax.Array:
    allowed = "severity must be a whole number from 1 to 5, or one for each image"
    traced = isinstance(severity, jax.core.Tracer)
    values = severity if traced else np.asarray(severity)
    if (
        values.shape not in ((), (batch_size,))
        or not jnp.issubdtype(values.dtype, jnp.integer)
        or not (traced or (values.min() >= 1 and values.max() <= 5))
    ):
        raise ValueError(f"{allowed}, got {severity!r}")
    return jnp.asarray(values, jnp.int32)


@functools.partial(jax.jit, static_argnames="one")
def _corrupt(
    x: jax.Array, keys: jax.Array, severity: jax.Array, *, one: One
) -> jax.Array:
    side = min(x.shape[1:3])

    def single(image: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
        return one(image, key, Level(severity, side)).astype(image.dtype)

    # one severity for all stays one, so that a blur is one convolution for the batch
    axes = (0, 0, 0 if severity.ndim else None)
    return jnp.clip(jax.vmap(single, in_axes=axes)(x, keys, severity), 0, 1)
