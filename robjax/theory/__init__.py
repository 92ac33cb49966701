"""Closed forms: no model and no data; float64 where JAX or NumPy is given float64."""

from robjax.theory import gaussian

__all__ = ["gaussian"]
