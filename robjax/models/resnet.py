"""ResNets for 32×32 images: ResNet-20/32, narrow and wide, and ResNet-18/34.

He et al. (arXiv 1512.03385, section 4.2) in the form of Shi et al. (arXiv 1906.02494).
In this order:

* a 3×3 convolution to 16 channels;
* three groups of basic blocks at 16w, 32w and 64w channels, with a stride of 2 between
  groups;
* global average pooling and one dense layer.

ResNet-18/34 are the same with four groups at 64, 128, 256 and 512 channels, as the
robustness literature has them for CIFAR.

Batch norm follows every convolution. Where a block changes the shape, its shortcut is a
1×1 convolution with batch norm.
"""

from typing import Any

import flax.linen as nn
import jax

from robjax.checks import check_count
from robjax.models.normalisation import normalise_maps


def conv(channels: int, kernel: int, stride: int, name: str) -> nn.Conv:
    """A convolution without bias, padded by kernel // 2 on every side.

    ("SAME" would pad a strided convolution on one side only.) Weights are
    kaiming-normal over fan-out.

    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> layer = conv(8, kernel=3, stride=2, name="conv")
    >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), images)[0].shape
    (1, 16, 16, 8)

    Args:
      channels: of the output.
      kernel: side of the kernel in pixels.
      stride: in pixels, along both sides.
      name: of the layer among the parameters.
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
    """Batch norm with running statistics, or with those of the batch if `train`.

    >>> import jax.numpy as jnp
    >>> layer = batch_norm(train=True, axis_name=None, name="bn")
    >>> x = jnp.array([[1.0], [3.0]])  # mean 2, standard deviation 1
    >>> layer.init_with_output(jax.random.key(0), x)[0].round(2).tolist()
    [[-1.0], [1.0]]

    Args:
      train: whether to use the statistics of the batch and update the running ones.
      axis_name: of the device axis; the statistics of the batch are then those of all
        devices together.
      name: of the layer among the parameters.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        axis_name=axis_name,
        # E[x²] − E[x]² cancels in float32 where the mean is large.
        use_fast_variance=False,
        name=name,
    )


def blocks_of(
    blocks_per_group: int | tuple[int, ...], channels: tuple[int, ...]
) -> tuple[int, ...]:
    """The number of blocks of each group.

    >>> blocks_of(2, channels=(16, 32, 64)), blocks_of((3, 4), channels=(16, 32))
    ((2, 2, 2), (3, 4))

    Args:
      blocks_per_group: the same number for all groups, or one for each.
      channels: of the groups.

    Raises:
      ValueError: there are not as many numbers as groups.
    """
    if isinstance(blocks_per_group, int):
        return (blocks_per_group,) * len(channels)
    if len(blocks_per_group) != len(channels):
        raise ValueError(
            f"blocks_per_group must hold one number for each of the {len(channels)} "
            f"groups, got {blocks_per_group}"
        )
    return tuple(blocks_per_group)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut: ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x)))))).

    Attributes:
      channels: of both convolutions.
      stride: of the first convolution and of the shortcut.
      axis_name: as in `ResNet`.
    """

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
    """Groups of basic blocks.

    >>> model = ResNet(10, blocks_per_group=1, width=2)
    >>> images = jax.ShapeDtypeStruct((5, 32, 32, 3), "float32")
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
    (5, 10)

    Attributes:
      num_classes: K.
      blocks_per_group: 3 for ResNet-20, 5 for ResNet-32; or one number a group.
      width: w, the factor on the channels of the groups, not of the first convolution.
      channels: of the groups; the first convolution has those of the first group.
      axis_name: name of the device axis over which training statistics of batch
        norm are averaged; None: each device on its own.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.

    Raises:
      ValueError: `blocks_per_group` does not hold one number for each of `channels`.
    """

    num_classes: int
    blocks_per_group: int | tuple[int, ...] = 3
    width: int = 1
    channels: tuple[int, ...] = (16, 32, 64)
    axis_name: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        blocks_of(self.blocks_per_group, self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K].

        With `train`, batch norm uses the statistics of this batch and updates the
        running ones: apply with ``mutable=["batch_stats"]``.
        """
        x = normalise_maps(x, self.mean, self.std)
        x = conv(self.channels[0], 3, 1, "conv")(x)
        x = nn.relu(batch_norm(train, self.axis_name, "bn")(x))
        blocks = blocks_of(self.blocks_per_group, self.channels)
        for group, channels in enumerate(self.channels, start=1):
            for index in range(1, blocks[group - 1] + 1):
                x = BasicBlock(
                    channels * self.width,
                    stride=2 if group > 1 and index == 1 else 1,
                    axis_name=self.axis_name,
                    name=f"group{group}_block{index}",
                )(x, train)
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)


def resnet18(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-18 for 32×32 images; `fields` are further fields of `ResNet`.

    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> variables = jax.eval_shape(resnet18(10).init, jax.random.key(0), images)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))  # 11.2 million
    11173962
    """
    check_count("num_classes", num_classes, minimum=2)
    return ResNet(num_classes, (2, 2, 2, 2), channels=(64, 128, 256, 512), **fields)


def resnet34(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-34 for 32×32 images; `fields` are further fields of `ResNet`.

    >>> resnet34(10).blocks_per_group
    (3, 4, 6, 3)
    """
    check_count("num_classes", num_classes, minimum=2)
    return ResNet(num_classes, (3, 4, 6, 3), channels=(64, 128, 256, 512), **fields)


def resnet20(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-20; `fields` are `width`, `axis_name`, `mean` and `std` of `ResNet`.

    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> variables = jax.eval_shape(resnet20(10).init, jax.random.key(0), images)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))  # 0.27 million
    272474
    """
    check_count("num_classes", num_classes, minimum=2)
    return ResNet(num_classes, blocks_per_group=3, **fields)


def resnet32(num_classes: int, **fields: Any) -> ResNet:
    """ResNet-32; `fields` are `width`, `axis_name`, `mean` and `std` of `ResNet`.

    >>> wide = resnet32(10, width=10)
    >>> wide.blocks_per_group, wide.width
    (5, 10)
    """
    check_count("num_classes", num_classes, minimum=2)
    return ResNet(num_classes, blocks_per_group=5, **fields)
