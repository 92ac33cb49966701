"""Parameters of closed forms: numbers or arrays, checked unless traced."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def check_range(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    below: float = np.inf,
) -> Any:
    """The value, a list as an array; ValueError unless finite and in its range."""
    if isinstance(value, jax.core.Tracer):
        return value
    numbers = np.asarray(value)
    if not (
        jnp.issubdtype(numbers.dtype, jnp.number)
        and numbers.size
        and np.isfinite(numbers).all()
        and (numbers >= low).all()
        and (numbers <= high).all()
        and (numbers < below).all()
    ):
        bracket = f"[{low:g}, {below:g})" if below < np.inf else f"[{low:g}, {high:g}]"
        raise ValueError(f"{name} must be finite and in {bracket}, got {value!r}")
    return numbers if isinstance(value, list | tuple) else value
