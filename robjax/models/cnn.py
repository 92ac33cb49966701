"""Small convolutional networks for MNIST-like images."""

import flax.linen as nn
import jax

from robjax.models.normalisation import normalise_maps


class CNN(nn.Module):
    """Convolutions with ReLU in blocks, each with a 2×2 max-pool, and a dense layer.

    The defaults are the MNIST network of Madry et al. (arXiv 1706.06083) with half
    the channels and a tenth of the dense layer. The network
    32-32-pool-64-64-pool-200-K is
    ``CNN(K, blocks=((32, 32), (64, 64)), kernel=3, hidden=200)``.

    >>> model = CNN(10, blocks=((4,), (8,)), hidden=20)
    >>> images = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables["params"]["dense"]["kernel"].shape  # two poolings: 7·7·8 features
    (392, 20)

    Attributes:
      num_classes: K.
      blocks: for each block the channels of its convolutions.
      kernel: side of the convolution kernels in pixels. Their stride is 1, and zero
        padding keeps the size.
      hidden: units of the dense layer.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.
    """

    num_classes: int
    blocks: tuple[tuple[int, ...], ...] = ((16,), (32,))
    kernel: int = 5
    hidden: int = 100
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K]; `train` changes nothing.

        Raises:
          ValueError: the images are smaller than 2^len(blocks) pixels a side.
        """
        x = normalise_maps(x, self.mean, self.std)
        smallest = 2 ** len(self.blocks)
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"x must be at least {smallest} pixels a side for {len(self.blocks)} "
                f"poolings, got shape {list(x.shape)}"
            )
        for block, widths in enumerate(self.blocks, start=1):
            for index, width in enumerate(widths, start=1):
                name = f"conv{block}_{index}"
                x = nn.relu(nn.Conv(width, (self.kernel, self.kernel), name=name)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)


class StridedCNN(nn.Module):
    """Convolutions of stride 2 with ReLU, and a dense layer; no pooling.

    Proofs are tighter without max-pooling. The defaults are about the "small" network
    of Gowal et al. (arXiv 1810.12715, table 1), whose second convolution has stride 1.

    >>> model = StridedCNN(10, widths=(4, 8), hidden=20)
    >>> images = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> variables["params"]["dense"]["kernel"].shape  # 7·7·8 features
    (392, 20)

    Attributes:
      num_classes: K.
      widths: channels of each convolution.
      kernel: side of the convolution kernels in pixels; zero padding, so that each
        halves the side of the image.
      hidden: units of the dense layer.
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 32)
    kernel: int = 4
    hidden: int = 100

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K]; `train` changes nothing."""
        for index, width in enumerate(self.widths, start=1):
            size = (self.kernel, self.kernel)
            x = nn.relu(nn.Conv(width, size, strides=2, name=f"conv{index}")(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)
