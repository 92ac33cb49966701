"""Certificates against auto_LiRPA: how tight, and how fast on the same cores.

    python -m benchmarks.certification [--batch 32] [--rounds 3] [--steps 20]

For each network and method: the mean margin of both, the largest and the least
difference of ours from theirs, and the CPU seconds of a call after compilation (best of
the rounds, in which both take turns), which other work on the machine hardly changes.
Weights and images are random, labels those that the network gives. Ours cuts linear
bounds inside with intervals, theirs of CROWN-Optimized optimises the slopes for bounds
inside, too.
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.tree_util import Partial

from benchmarks import timing
from benchmarks.peers import lirpa
from robjax.balls import Linf
from robjax.certification import METHODS, certify

# layers: (inputs, outputs) dense; (inputs, outputs, kernel, stride) convolution
NETWORKS = {
    "mlp 64-100-100-10": ((64,), ((64, 100), (100, 100), (100, 10)), 0.01),
    "cnn 8-16-100": (
        (1, 28, 28),
        ((1, 8, 4, 2), (8, 16, 4, 2), (400, 100), (100, 10)),
        0.01,
    ),
}


def random_weights(layers, seed=0):
    """Pairs of weight, in the layout of PyTorch, and bias."""
    rng = np.random.default_rng(seed)
    found = []
    for inputs, outputs, *window in layers:
        shape = (outputs, inputs, *window[:1] * 2)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        pair = rng.normal(size=shape) * scale, rng.normal(size=outputs) * 0.1
        found.append((np.float32(pair[0]), np.float32(pair[1])))
    return found


def in_jax(layers, weights, x):
    """Logits of images [B, *S]."""
    for number, ((*_, last), (w, b)) in enumerate(zip(layers, weights, strict=True)):
        if w.ndim == 4:
            x = lax.conv_general_dilated(x, w, (last, last), "VALID")
            x = x + b[None, :, None, None]
        else:
            x = x.reshape(len(x), -1) @ w.T + b[None]
        x = jax.nn.relu(x) if number < len(layers) - 1 else x
    return x


def in_torch(layers, weights):
    """The same network as a module."""
    modules = []
    for size, (w, b) in zip(layers, weights, strict=True):
        if w.ndim == 4:
            module = torch.nn.Conv2d(size[0], size[1], size[2], size[3])
        else:
            if modules and isinstance(modules[-2], torch.nn.Conv2d):
                modules.append(torch.nn.Flatten())
            module = torch.nn.Linear(size[0], size[1])
        module.weight.data, module.bias.data = torch.tensor(w), torch.tensor(b)
        modules += [module, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def seconds(run):
    """CPU seconds of one call, of all threads, and what it returns."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def measure(name, batch, rounds, steps):
    """Table rows of one network."""
    shape, layers, eps = NETWORKS[name]
    weights = random_weights(layers)
    x = np.random.default_rng(1).uniform(size=(batch, *shape)).astype(np.float32)

    def network(weights, v):
        return in_jax(layers, weights, v)

    model = Partial(network, jax.tree.map(jnp.asarray, weights))
    y = np.asarray(model(x)).argmax(axis=1)
    theirs = lirpa.margins(in_torch(layers, weights), x, y, eps, steps)
    for method in METHODS:

        def ours(method=method):
            return certify(
                model, x, y, ball=Linf(eps), method=(method,), steps=steps,
                batch_size=batch,
            ).margin  # fmt: skip

        runs = {"ours": ours, "theirs": theirs[method]}
        found = {who: run() for who, run in runs.items()}  # compiles
        times = {who: [] for who in runs}
        for _, (who, run) in itertools.product(range(rounds), runs.items()):
            times[who].append(seconds(run)[0])
        margin = found["theirs"].min(axis=1)
        apart = found["ours"] - margin
        best = {who: min(each) for who, each in times.items()}
        yield (
            f"| {name} | {method} | {found['ours'].mean():.4f} | {margin.mean():.4f} | "
            f"{apart.min():+.1e} | {apart.max():+.1e} | {best['ours']:.3f} | "
            f"{best['theirs']:.3f} | {best['theirs'] / best['ours']:.1f} |"
        )


def main() -> None:
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}; torch {torch.__version__}\n")
    print(
        "| network | method | ours | auto_LiRPA | least difference | largest | "
        "ours CPU s | auto_LiRPA CPU s | times as fast |\n" + "|---" * 9 + "|"
    )
    for name in args.networks:
        for row in measure(name, args.batch, args.rounds, args.steps):
            print(row, flush=True)


if __name__ == "__main__":
    main()
