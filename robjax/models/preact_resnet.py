"""Pre-activation ResNets for 32×32 images.

He et al. (arXiv 1603.05027), with the groups of ResNet-18 as the robustness literature
has them for CIFAR. In this order:

* a 3×3 convolution to 64 channels;
* four groups of pre-activation blocks at 64, 128, 256 and 512 channels, with a stride
  of 2 between groups;
* batch norm and ReLU, which some leave out;
* global average pooling and one dense layer.
"""

from typing import Any

import flax.linen as nn
import jax

from robjax.checks import check_count
from robjax.models.normalisation import normalise_maps
from robjax.models.resnet import batch_norm, blocks_of, conv
from robjax.models.wide_resnet import PreActivationBlock


class PreActResNet(nn.Module):
    """Groups of pre-activation blocks.

    Published code differs in two places, and so do the weights made with it:

    * `raw_shortcut`: the 1×1 convolution of a shortcut takes the block's input x, and
      not ReLU(BN(x)) as in the paper. No name or shape of a weight tells which;
    * `final_norm`: batch norm and ReLU follow the last block, as in the paper.

    RobustBench's ``PreActResNet(PreActBlock, …)`` has neither by default: give
    ``raw_shortcut=True, final_norm=False``. Its PreActBlockV2 and ``out_shortcut=True``
    are ``raw_shortcut=False``, its ``bn_before_fc=True`` is ``final_norm=True``.

    >>> model = PreActResNet(10, blocks_per_group=1, channels=(4, 8))
    >>> images = jax.ShapeDtypeStruct((5, 32, 32, 3), "float32")
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
    (5, 10)

    Attributes:
      num_classes: K.
      blocks_per_group: the same number for all groups, or one for each.
      channels: of the groups; the first convolution has those of the first group.
      raw_shortcut: see above.
      final_norm: see above.
      axis_name: name of the device axis over which training statistics of batch
        norm are averaged; None: each device on its own.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.

    Raises:
      ValueError: `blocks_per_group` does not hold one number for each of `channels`.
    """

    num_classes: int
    blocks_per_group: int | tuple[int, ...] = 2
    channels: tuple[int, ...] = (64, 128, 256, 512)
    raw_shortcut: bool = False
    final_norm: bool = True
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
        blocks = blocks_of(self.blocks_per_group, self.channels)
        for group, channels in enumerate(self.channels, start=1):
            for index in range(1, blocks[group - 1] + 1):
                x = PreActivationBlock(
                    channels,
                    stride=2 if group > 1 and index == 1 else 1,
                    axis_name=self.axis_name,
                    raw_shortcut=self.raw_shortcut,
                    name=f"group{group}_block{index}",
                )(x, train)
        if self.final_norm:
            x = nn.relu(batch_norm(train, self.axis_name, "bn")(x))
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="logits")(x)


def preact_resnet18(num_classes: int, **fields: Any) -> PreActResNet:
    """PreActResNet-18; `fields` are further fields of `PreActResNet`.

    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> model = preact_resnet18(10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))  # 11.2 million
    11172170
    """
    check_count("num_classes", num_classes, minimum=2)
    return PreActResNet(num_classes, blocks_per_group=2, **fields)
