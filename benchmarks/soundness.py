"""Are proofs ever wrong? Each image is attacked at the largest ε that is proven for it.

    python -m benchmarks.soundness [mlp cnn …] [--norm Linf L2 L1] [--images 64]

Networks of every kind that the rules know, trained on digits. For each image the
largest radius that `certify` proves is found by bisection, and AutoAttack, standard,
searches there: what it breaks is a defect, and is counted. At twice the radius it
breaks many, which shows that it works. The last columns are means over the images.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import networks, timing
from robjax import attacks, certification, data, models, training
from robjax.balls import L1, L2, Ball, Linf
from robjax.training import FitConfig, objectives

HIGHEST = {Linf: 0.3, L2: 1.5, L1: 4.0}
HALVINGS = 12
METHODS: tuple[certification.Method, ...] = ("ibp", "crown_ibp", "crown")
FIT = FitConfig(
    epochs=10, batch_size=64, optimizer="adam", learning_rate=3e-3, schedule="cosine"
)


class Smooth(nn.Module):
    """A convolution and dense layers with activations that bend everywhere."""

    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        """Images [B, H, W, C] -> logits [B, 10]."""
        x = self.activation(nn.Conv(8, (3, 3), strides=2)(x))
        x = self.activation(nn.Dense(32)(x.reshape((x.shape[0], -1))))
        return nn.Dense(10)(x)


class Attention(nn.Module):
    """One block of self-attention over patches of 2 × 2 pixels."""

    @nn.compact
    def __call__(self, x):
        """Images [B, H, W, C] -> logits [B, 10]."""
        x = nn.Conv(16, (2, 2), strides=(2, 2))(x)
        x = x.reshape(x.shape[0], -1, 16)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


MODELS: dict[str, nn.Module | nnx.Module] = {
    "mlp": models.MLP(10, widths=(50, 50)),
    "cnn": models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32),
    "strided": models.StridedCNN(10, widths=(8, 16), hidden=32),
    "vgg": models.VGG(10, blocks=((8,), (16,))),
    "resnet": models.ResNet(10, blocks_per_group=1, channels=(4, 8)),
    "tanh": Smooth(nn.tanh),
    "gelu": Smooth(nn.gelu),
    "softplus": Smooth(nn.softplus),
    "leaky": Smooth(nn.leaky_relu),
    "mixer": networks.UserMixer(width=8),
    "group norm": networks.UserResNet(width=8),
    "attention": Attention(),
}


def proven_radius(logits_fn: Any, x: Any, y: Any, kind: type[Ball]) -> np.ndarray:
    """The largest ε found to be proven, [B]; 0 where none was."""
    low = np.zeros(len(x), np.float32)
    high = np.full(len(x), HIGHEST[kind], np.float32)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        proven = certification.certify(
            logits_fn, x, y, ball=kind(jnp.asarray(middle)), method=METHODS
        ).proven
        low, high = np.where(proven, middle, low), np.where(proven, high, middle)
    return low


def measure(name: str, kinds: list[type[Ball]], images: int, seed: int) -> None:
    """Prints a row for each ball."""
    objective = functools.partial(
        objectives.adversarial, ball=Linf(0.05), steps=5, step_size=0.02
    )
    model = MODELS[name]
    state = training.fit(
        model,
        data.load("digits", "train"),
        objective=objective,
        config=dataclasses.replace(FIT, seed=seed),
        progress=False,
    )
    logits_fn = training.logits_fn(model, state.weights)
    test = data.load("digits", "test")
    x = data.to_float(test.images, test.scale)
    right = np.flatnonzero(np.argmax(logits_fn(x), axis=1) == test.labels)[:images]
    x, y = x[right], jnp.asarray(test.labels[right])
    for kind in kinds:
        radius = proven_radius(logits_fn, x, y, kind)
        some = radius > 0
        key = jax.random.key(seed)
        run = functools.partial(
            attacks.autoattack, logits_fn, x[some], y[some], key=key
        )
        broken, twice = (
            np.count_nonzero(run(ball=kind(jnp.asarray(factor * radius[some]))).success)
            if some.any()
            else 0
            for factor in (1, 2)
        )
        distance = attacks.fmn(logits_fn, x, y, ball=kind(1.0)).distance
        print(
            f"| {name} | {kind.__name__} | {np.count_nonzero(some)} of {len(x)} | "
            f"{broken} | {twice} | {radius.mean():.4f} | {np.mean(distance):.4f} |",
            flush=True,
        )


def main() -> None:
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", help=f"{[*MODELS]}")
    kinds = {kind.__name__: kind for kind in (Linf, L2, L1)}
    parser.add_argument("--norm", nargs="+", choices=kinds, default=[*kinds])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")
    print(
        "| network | ball | images with a proof | broken at the proven radius | at "
        "twice | proven radius | FMN's distance |\n" + "|---" * 7 + "|"
    )
    for name in args.networks or MODELS:
        measure(name, [kinds[norm] for norm in args.norm], args.images, args.seed)


if __name__ == "__main__":
    main()
