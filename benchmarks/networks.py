"""The networks that the benchmarks run on, with random weights and images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from robjax import models


class UserNet(nn.Module):
    """A network as a flax user writes it, with nothing of robjax in it."""

    @nn.compact
    def __call__(self, x):
        """Images [B, 28, 28, 1] -> logits [B, 10]."""
        for width in (32, 64):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(200)(x.reshape((x.shape[0], -1))))
        return nn.Dense(10)(x)


class UserMixer(nn.Module):
    """An MLP-Mixer of two blocks on patches of 4 × 4 pixels, as a flax user has it."""

    width: int = 32

    @nn.compact
    def __call__(self, x):
        """Images [B, H, W, C] -> logits [B, 10]."""
        x = nn.Conv(self.width, (4, 4), strides=(4, 4))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(2):
            mixed = nn.LayerNorm()(x).swapaxes(1, 2)
            mixed = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(2 * x.shape[1])(mixed)))
            x = x + mixed.swapaxes(1, 2)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


class UserResNet(nnx.Module):
    """Two residual blocks with group norm and SiLU, as a user of flax.nnx has them."""

    def __init__(self, channels: int = 1, width: int = 16):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(channels, width, (4, 4), strides=2, rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(width, 4, rngs=rngs) for _ in range(4)])
        convs = [
            nnx.Conv(width, width, (3, 3), strides=1 + i % 2, rngs=rngs)
            for i in range(4)
        ]
        self.convs = nnx.List(convs)
        self.skips = nnx.List(
            [nnx.Conv(width, width, (1, 1), strides=2, rngs=rngs) for _ in range(2)]
        )
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        """Images [B, H, W, C] -> logits [B, 10]."""
        x = self.stem(x)
        for i, skip in enumerate(self.skips):
            inner = x
            for j in (2 * i, 2 * i + 1):
                inner = self.convs[j](nnx.silu(self.norms[j](inner)))
            x = skip(x) + inner
        return self.last(x.mean(axis=(1, 2)))


class Network(NamedTuple):
    """A model with weights; `logits` is what the attacks are given."""

    model: nn.Module
    variables: Any
    shape: tuple[int, int, int]

    @property
    def logits(self) -> Partial:
        """Images [B, *shape] -> logits [B, 10]."""
        return Partial(self.model.apply, self.variables)


_WIDE = {"blocks": ((32, 32), (64, 64)), "kernel": 3, "hidden": 200}
BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mlp": (lambda: models.MLP(10), (28, 28, 1)),
    "flax_cnn": (UserNet, (28, 28, 1)),
    "cnn": (lambda: models.CNN(10), (28, 28, 1)),
    "cnn_3x3": (lambda: models.CNN(10, **_WIDE), (28, 28, 1)),
    "resnet20": (lambda: models.resnet20(10), (32, 32, 3)),
    "vgg13": (lambda: models.vgg13(10), (32, 32, 3)),
}


def build(name: str, seed: int = 0) -> Network:
    """One of `BUILDERS` with freshly drawn weights."""
    make, shape = BUILDERS[name]
    model = make()
    images = np.zeros((1, *shape), np.float32)
    return Network(model, jax.jit(model.init)(jax.random.key(seed), images), shape)


def batch(network: Network, size: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random images [size, *shape] in [0, 1] and the labels the network gives them."""
    rng = np.random.default_rng(seed)
    x = jax.numpy.asarray(rng.uniform(size=(size, *network.shape)), "float32")
    return x, jax.jit(lambda fn, x: fn(x).argmax(1))(network.logits, x)
