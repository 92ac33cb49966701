"""Image classifiers in flax.linen, the models of the papers.

Every model is used in the same way, in inference mode unless `train` is set:

    model = vgg13(num_classes=10)
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images)                      # [B, K]
    logits, updates = model.apply(                               # with batch norm
        variables, images, train=True, mutable=["batch_stats"]
    )
    logits_fn = jax.tree_util.Partial(model.apply, variables)    # for attacks, metrics

Parameters are float32, and the computation has the precision of the images: under
``jax_enable_x64`` float64 images give float64 logits. Images are those that an attack
changes, inside its bounds; their normalisation (`mean`, `std`) is part of the model.
"""

from robjax.models import bridges, converters, taps
from robjax.models.cnn import CNN, StridedCNN
from robjax.models.linear import Linear
from robjax.models.mlp import MLP
from robjax.models.preact_resnet import PreActResNet, preact_resnet18
from robjax.models.resnet import ResNet, resnet18, resnet20, resnet32, resnet34
from robjax.models.vgg import VGG, vgg11, vgg13, vgg16
from robjax.models.wide_resnet import WideResNet, wide_resnet_28_10

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "Linear",
    "PreActResNet",
    "ResNet",
    "StridedCNN",
    "WideResNet",
    "bridges",
    "converters",
    "preact_resnet18",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "taps",
    "vgg11",
    "vgg13",
    "vgg16",
    "wide_resnet_28_10",
]
