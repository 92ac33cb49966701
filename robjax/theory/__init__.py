"""Closed forms: results that need neither a model nor data.

gaussian            accuracy against robustness on the Gaussian model of Tsipras et al.
gaussian_svm        support vector machines on it, standard and adversarially trained
feature_spaces      when linear features can be robust: predictor and oracle
linear_regression   adversarial training of linear regression, and spurious features

What is computed with JAX is float64 under `jax.enable_x64(True)` only. What is solved
on the host always is.
"""

from robjax.theory import feature_spaces, gaussian, gaussian_svm, linear_regression

__all__ = ["feature_spaces", "gaussian", "gaussian_svm", "linear_regression"]
