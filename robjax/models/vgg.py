"""VGG-11/13/16 for 32×32 images, without batch norm, in three degrees of linearity.

Simonyan & Zisserman (arXiv 1409.1556) in the CIFAR form of Shi et al. (arXiv
1906.02494): 3×3 convolutions with biases, kaiming-normal initialisation over
fan-out, one linear classifier on 512 features.

    form            after each convolution    pooling
    relu            ReLU                      max
    half_linear     nothing                   max
    pure_linear     nothing                   average (the network is affine in x)
"""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax

from robjax.checks import check_count
from robjax.models.normalisation import normalise_maps

Form = Literal["relu", "half_linear", "pure_linear"]

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG13 = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


class VGG(nn.Module):
    """Blocks of 3×3 convolutions, a 2×2 pooling after each, a linear classifier.

    Five poolings take 32×32 images to 1×1. On smaller images the poolings that would
    go below 1×1 are left out. On larger ones the last maps are averaged over space.

    >>> model = VGG(10, blocks=((4,), (8,)), form="pure_linear")
    >>> images = jax.ShapeDtypeStruct((5, 32, 32, 3), "float32")
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
    (5, 10)

    Attributes:
      num_classes: K.
      blocks: for each block the channels of its convolutions.
      form: see the module docstring.
      mean: input normalisation per channel, in the units of the images; empty: none.
      std: as `mean`.

    Raises:
      ValueError: `form` is none of the three.
    """

    num_classes: int
    blocks: tuple[tuple[int, ...], ...] = VGG13
    form: Form = "relu"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {get_args(Form)}, got {self.form!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, H, W, C] -> logits [B, K]; `train` changes nothing."""
        x = normalise_maps(x, self.mean, self.std)
        pool = nn.avg_pool if self.form == "pure_linear" else nn.max_pool
        kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        for block, widths in enumerate(self.blocks, start=1):
            for index, width in enumerate(widths, start=1):
                name = f"conv{block}_{index}"
                x = nn.Conv(width, (3, 3), kernel_init=kaiming, name=name)(x)
                x = nn.relu(x) if self.form == "relu" else x
            if min(x.shape[1:3]) >= 2:
                x = pool(x, (2, 2), strides=(2, 2))
        x = x.mean(axis=(1, 2))
        self.sow("intermediates", "features", x)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=init, name="logits")(x)


def vgg11(num_classes: int, **fields: Any) -> VGG:
    """VGG with 8 convolutions; `fields` are `form`, `mean` and `std` of `VGG`.

    >>> sum(len(channels) for channels in vgg11(10).blocks)
    8
    """
    check_count("num_classes", num_classes, minimum=2)
    return VGG(num_classes, blocks=VGG11, **fields)


def vgg13(num_classes: int, **fields: Any) -> VGG:
    """VGG with 10 convolutions; `fields` are `form`, `mean` and `std` of `VGG`.

    >>> sum(len(channels) for channels in vgg13(10).blocks)
    10
    """
    check_count("num_classes", num_classes, minimum=2)
    return VGG(num_classes, blocks=VGG13, **fields)


def vgg16(num_classes: int, **fields: Any) -> VGG:
    """VGG with 13 convolutions; `fields` are `form`, `mean` and `std` of `VGG`.

    >>> sum(len(channels) for channels in vgg16(10).blocks)
    13
    """
    check_count("num_classes", num_classes, minimum=2)
    return VGG(num_classes, blocks=VGG16, **fields)
