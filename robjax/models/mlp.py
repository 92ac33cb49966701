"""The multilayer perceptron: dense layers with ReLU between them."""

import flax.linen as nn
import jax

from robjax.models.normalisation import normalise


class MLP(nn.Module):
    """Dense layers with ReLU on the flattened image, then the logits.

    >>> images = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    >>> model = MLP(10, widths=(200, 100))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> {name: layer["kernel"].shape for name, layer in variables["params"].items()}
    {'dense1': (784, 200), 'dense2': (200, 100), 'logits': (100, 10)}

    Attributes:
      num_classes: K.
      widths: units of each hidden layer; empty gives the linear classifier.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.
    """

    num_classes: int
    widths: tuple[int, ...] = (100,)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, *S] -> logits [B, K]; `train` changes nothing."""
        x = normalise(x, self.mean, self.std)
        x = x.reshape((x.shape[0], -1))
        for index, width in enumerate(self.widths, start=1):
            x = nn.relu(nn.Dense(width, name=f"dense{index}")(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)
