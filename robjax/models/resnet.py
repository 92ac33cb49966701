"""ResNet-20/32 for 32×32 images, narrow and wide.

He et al. (arXiv 1512.03385, section 4.2) in the form of Shi et al. (arXiv
1906.02494): a 3×3 convolution to 16 channels, three groups of basic blocks at
16w, 32w and 64w channels, a stride of 2 between groups, batch norm after every
convolution, 1×1 convolution + batch norm on the shortcut where the shape changes,
global average pooling, one dense layer.
"""

from typing import Any

import flax.linen as nn
import jax

from robjax.models.normalisation import normalise_maps


def conv(channels: int, kernel: int, stride: int, name: str) -> nn.Conv:
    """A convolution without bias, padded by kernel // 2 on every side.

    ("SAME" would pad a strided convolution on one side only.) Weights are
    kaiming-normal over fan-out.
    """
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def batch_norm(train: bool, axis_name: str | None, name: str) -> nn.BatchNorm:
    """Batch norm with running statistics, or those of the batch if `train`.

    With `axis_name` the statistics of the batch are those of all devices together.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        axis_name=axis_name,
        # E[x²] − E[x]² cancels in float32 where the mean is large.
        use_fast_variance=False,
        name=name,
    )


class BasicBlock(nn.Module):
    """ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x))))))."""

    channels: int
    stride: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] -> [B, H / stride, W / stride, channels]."""
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = conv(self.channels, 1, self.stride, "shortcut_conv")(x)
            shortcut = batch_norm(train, self.axis_name, "shortcut_bn")(shortcut)
        x = conv(self.channels, 3, self.stride, "conv1")(x)
        x = nn.relu(batch_norm(train, self.axis_name, "bn1")(x))
        x = conv(self.channels, 3, 1, "conv2")(x)
        return nn.relu(shortcut + batch_norm(train, self.axis_name, "bn2")(x))


class ResNet(nn.Module):
    """Three groups of basic blocks.

    Attributes:
      num_classes: K.
      blocks_per_group: 3 for ResNet-20, 5 for ResNet-32.
      width: w, the factor on the channels 16, 32, 64 of the groups.
      axis_name: name of the device axis over which training statistics of batch
        norm are averaged; None: each device on its own.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.
    """

    num_classes: int
    blocks_per_group: int = 3
    width: int = 1
    axis_name: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K].

        With `train`, batch norm uses the statistics of this batch and updates the
        running ones: apply with ``mutable=["batch_stats"]``.
        """
        x = normalise_maps(x, self.mean, self.std)
        x = conv(16, 3, 1, "conv")(x)
        x = nn.relu(batch_norm(train, self.axis_name, "bn")(x))
        for group, channels in enumerate((16, 32, 64), start=1):
            for index in range(1, self.blocks_per_group + 1):
                x = BasicBlock(
                    channels * self.width,
                    stride=2 if group > 1 and index == 1 else 1,
                    axis_name=self.axis_name,
                    name=f"group{group}_block{index}",
                )(x, train)
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)


def resnet20(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-20; `fields` are `width`, `axis_name`, `mean` and `std` of `ResNet`."""
    return ResNet(num_classes, blocks_per_group=3, **fields)


def resnet32(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-32; `fields` are `width`, `axis_name`, `mean` and `std` of `ResNet`."""
    return ResNet(num_classes, blocks_per_group=5, **fields)
