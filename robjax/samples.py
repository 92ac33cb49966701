"""Arrays with one entry for each sample of a batch: broadcasting, choice, random keys.

A batch is an array [B, *S]. What belongs to its samples one by one, such as a radius or
a verdict, is an array [B]. The functions here bring the two together.
"""

from typing import TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Tree = TypeVar("Tree")


def per_sample(value: ArrayLike, x: jax.Array) -> jax.Array:
    """Shapes a number, or one for each sample, so that it multiplies x [B, *S].

    >>> import jax.numpy as jnp
    >>> per_sample(jnp.array([1.0, 2.0]), jnp.ones((2, 8, 8, 1))).shape
    (2, 1, 1, 1)

    Args:
      value: a scalar or [B].
      x: [B, *S], whose dtype the result takes.

    Returns:
      A scalar, or [B, 1, …, 1] with as many axes as x.
    """
    value = jnp.asarray(value, x.dtype)
    return value if value.ndim == 0 else mask_samples(value, x)


def mask_samples(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Shapes a mask [B] as [B, 1, …, 1], so that `jnp.where` chooses whole samples.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> jnp.where(mask_samples(jnp.array([True, False]), x), x, 0).tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))


def select_samples(mask: jax.Array, chosen: Tree, other: Tree) -> Tree:
    """Takes the samples of `chosen` where the mask [B] holds, else those of `other`.

    >>> import jax.numpy as jnp
    >>> mask = jnp.array([True, False])
    >>> select_samples(mask, {"a": jnp.ones(2)}, {"a": jnp.zeros(2)})["a"].tolist()
    [1.0, 0.0]

    Args:
      mask: [B] bool.
      chosen: pytree of arrays [B, …].
      other: pytree of the same structure.
    """
    return jax.tree.map(
        lambda a, b: jnp.where(mask_samples(mask, a), a, b), chosen, other
    )


def flatten_samples(x: jax.Array) -> jax.Array:
    """Images [B, *S] as rows [B, n].

    >>> import jax.numpy as jnp
    >>> flatten_samples(jnp.ones((2, 8, 8, 1))).shape
    (2, 64)
    """
    return x.reshape(x.shape[0], -1)


def sample_keys(key: object, batch_size: int) -> jax.Array:
    """Gives every sample a random key of its own, [B].

    * One key is folded with the number of the sample: sample i draws from
      ``fold_in(key, i)``.
    * An array of B keys is taken as it is, so that a sample keeps its draws in any
      batch.

    >>> import jax
    >>> keys = sample_keys(jax.random.key(0), 3)
    >>> bool((sample_keys(keys, 3) == keys).all())
    True

    Args:
      key: one key, or B keys, as made by `jax.random.key` (or by the older
        `jax.random.PRNGKey`).
      batch_size: B.

    Raises:
      ValueError: `key` is neither one key nor B keys.
    """
    keys = check_key(key, batch_size)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(jnp.asarray(keys))
    if keys.shape == ():
        indices = jnp.arange(batch_size, dtype=jnp.uint32)
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys, indices)
    return jnp.asarray(keys)


def check_key(key: object, batch_size: int | None = None) -> jax.Array:
    """Checks a random key, or one for each sample, from which nothing is drawn yet.

    >>> import jax
    >>> check_key(jax.random.split(jax.random.key(0), 3), batch_size=3).shape
    (3,)

    Args:
      key: as in `sample_keys`.
      batch_size: B; None: it must be one key.

    Returns:
      The key as it is.

    Raises:
      ValueError: `key` is neither one key nor B keys.
    """
    several = "" if batch_size is None else f" or an array of {batch_size} keys"
    expected = f"one key from jax.random.key(seed){several}"
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"key must be {expected}, got {key!r}")
    shape = key.shape
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim not in (1, 2) or shape[-1] != 2:
            raise ValueError(f"key must be {expected}, got {key.dtype}{shape}")
        shape = shape[:-1]
    if shape != () and (batch_size is None or shape != (batch_size,)):
        raise ValueError(f"key must be {expected}, got an array of keys {shape}")
    return cast(jax.Array, key)


def fold_keys(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """Folds the same number into each of [B] keys.

    >>> import jax
    >>> keys = sample_keys(jax.random.key(0), 3)
    >>> bool(fold_keys(keys, 7)[1] == jax.random.fold_in(keys[1], 7))
    True

    Args:
      keys: [B].
      number: an integer, the number of a step, say.

    Returns:
      [B] keys.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def is_concrete(value: object) -> bool:
    """Whether `value` is an array with values; inside `jax.jit` arrays have none.

    >>> import jax, numpy as np
    >>> is_concrete(np.ones(2)), is_concrete(jax.ShapeDtypeStruct((2,), float))
    (True, False)
    """
    return isinstance(value, jax.Array | np.ndarray) and not isinstance(
        value, jax.core.Tracer
    )
