"""The linear classifier: logits = W·x + b on the flattened image."""

import flax.linen as nn
import jax

from robjax.models.normalisation import normalise


class Linear(nn.Module):
    """One affine map from the flattened image to the logits.

    >>> import jax.numpy as jnp
    >>> weights = {"kernel": jnp.eye(4, 2), "bias": jnp.array([0.0, 1.0])}
    >>> images = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> Linear(2).apply({"params": {"logits": weights}}, images).tolist()
    [[0.0, 2.0]]

    Attributes:
      num_classes: K.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.
    """

    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, *S] -> logits [B, K]; `train` changes nothing."""
        x = normalise(x, self.mean, self.std)
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(self.num_classes, name="logits")(x)
