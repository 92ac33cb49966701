"""Wide residual networks with pre-activation for 32×32 images.

Zagoruyko & Komodakis (arXiv 1605.07146), the usual model of the robustness literature.
In this order:

* a 3×3 convolution to 16 channels;
* three groups of pre-activation blocks at 16w, 32w and 64w channels, with a stride of 2
  between groups;
* batch norm, ReLU, global average pooling and one dense layer.

Where a block changes the shape, its shortcut is a 1×1 convolution. There is no dropout.
"""

from typing import Any

import flax.linen as nn
import jax

from robjax.checks import check_count
from robjax.models.normalisation import normalise_maps
from robjax.models.resnet import batch_norm, conv


class PreActivationBlock(nn.Module):
    """Two convolutions, each after BN and ReLU, and a shortcut.

    shortcut + conv(ReLU(BN(conv(a)))) with a = ReLU(BN(x)). The shortcut is x, or a
    1×1 convolution of a, or of x if `raw_shortcut`, where the shape changes.

    Attributes:
      channels: of both convolutions.
      stride: of the first convolution and of the shortcut.
      axis_name: as in `WideResNet`.
      raw_shortcut: as in `PreActResNet`.
    """

    channels: int
    stride: int
    axis_name: str | None = None
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] -> [B, H / stride, W / stride, channels]."""
        shortcut = x
        x = nn.relu(batch_norm(train, self.axis_name, "bn1")(x))
        if self.stride != 1 or x.shape[-1] != self.channels:
            source = shortcut if self.raw_shortcut else x
            shortcut = conv(self.channels, 1, self.stride, "shortcut_conv")(source)
        x = conv(self.channels, 3, self.stride, "conv1")(x)
        x = nn.relu(batch_norm(train, self.axis_name, "bn2")(x))
        return shortcut + conv(self.channels, 3, 1, "conv2")(x)


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks, ``WRN-depth-width``.

    >>> model = WideResNet(10, depth=10, width=1)
    >>> images = jax.ShapeDtypeStruct((5, 32, 32, 3), "float32")
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
    (5, 10)

    Attributes:
      num_classes: K.
      depth: number of layers, 6n + 4 for n blocks in each group.
      width: w, the factor on the channels 16, 32, 64 of the groups.
      axis_name: name of the device axis over which training statistics of batch
        norm are averaged; None: each device on its own.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.

    Raises:
      ValueError: `depth` is not 6n + 4 with n ≥ 1.
    """

    num_classes: int
    depth: int = 28
    width: int = 10
    axis_name: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 with n >= 1, got {self.depth}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K].

        With `train`, batch norm uses the statistics of this batch and updates the
        running ones: apply with ``mutable=["batch_stats"]``.
        """
        x = normalise_maps(x, self.mean, self.std)
        x = conv(16, 3, 1, "conv")(x)
        blocks_per_group = (self.depth - 4) // 6
        for group, channels in enumerate((16, 32, 64), start=1):
            for index in range(1, blocks_per_group + 1):
                x = PreActivationBlock(
                    channels * self.width,
                    stride=2 if group > 1 and index == 1 else 1,
                    axis_name=self.axis_name,
                    name=f"group{group}_block{index}",
                )(x, train)
        x = nn.relu(batch_norm(train, self.axis_name, "bn")(x))
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)


def wide_resnet_28_10(num_classes: int, **fields: Any) -> WideResNet:
    """WRN-28-10; `fields` are `axis_name`, `mean` and `std` of `WideResNet`.

    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> model = wide_resnet_28_10(10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))  # 36.5 million
    36479194
    """
    check_count("num_classes", num_classes, minimum=2)
    return WideResNet(num_classes, depth=28, width=10, **fields)
