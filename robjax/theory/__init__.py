"""Closed forms, without a model or data.

Values of JAX are float64 under `jax.enable_x64(True)` only; what is solved on the host
always is.
"""

from robjax.theory import gaussian, gaussian_svm

__all__ = ["gaussian", "gaussian_svm"]
