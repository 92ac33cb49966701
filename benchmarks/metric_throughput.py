"""Cost of the metrics against their floors.

    python -m benchmarks.metric_throughput [--models …] [--data mnist.npz]

Three tables: the split of the KL divergence per pair, in forward passes (floor 3: one
forward-mode pass and one forward pass); the metric over all ordered pairs; and the
Fisher spectrum by the K×K Gram matrix against F itself (d×d): built for its norm alone,
and with its eigenvalues, in time and in peak memory of the compiled program. The K
backward passes for the Jacobian are in all three. `--data` names an .npz with `images`
[N, *S] in [0, 1] and `labels` for the all-pairs table; random images otherwise.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing
from robjax import lowering, metrics
from robjax.metrics.fisher import logits_and_jacobian


def split_rows(name: str, size: int, rounds: int) -> list[str]:
    """`kl_components` on one network in units of its forward pass."""
    network = networks.build(name)
    x, _ = networks.batch(network, size, seed=0)
    x_prime, _ = networks.batch(network, size, seed=1)
    logits, forward = network.logits, jax.jit(lambda fn, v: fn(v))
    times = timing.compare(
        {
            "forward": lambda: forward(logits, x),
            "split": lambda: metrics.kl_components(logits, x, x_prime),
        },
        rounds,
    )
    one, split = times["forward"].best, times["split"].best
    per_pair = 1e3 / size
    return [
        f"| {name} | {size} | {one * per_pair:.3f} | {split * per_pair:.3f} | "
        f"{split / one:.2f} |"
    ]


def all_pairs_row(name: str, sizes: list[int], data: str | None) -> list[str]:
    """`pairwise_kl` over all ordered pairs; one call, compilation included."""
    network, rows = networks.build(name), []
    for size in sizes:
        if data:
            stored = np.load(data)
            x, y = jnp.asarray(stored["images"][:size]), stored["labels"][:size]
        else:
            x, _ = networks.batch(network, size)
            y = np.arange(size) % 10
        start = time.perf_counter()
        result = metrics.pairwise_kl(network.logits, x, y)
        seconds = time.perf_counter() - start
        rows.append(
            f"| {name} | {size} | {result.pairs} | {seconds:.1f} | "
            f"{result.pairs / seconds / 1e6:.2f} |"
        )
    return rows


def explicit(logits_fn, x: jax.Array, *, spectrum: bool) -> jax.Array:
    """‖F‖_F [B], or the largest eigenvalue, from F = Σ_k p_k g_k g_kᵀ as a matrix."""

    def one(image):
        logits, jacobian = logits_and_jacobian(logits_fn, image[None])
        p, jacobian = jax.nn.softmax(logits[0]), jacobian[0]
        g = jacobian - (p @ jacobian)[None]
        fisher = jnp.einsum("k,kd,ke->de", p, g, g)
        if spectrum:
            return jnp.linalg.eigvalsh(fisher)[-1]
        return jnp.sqrt(jnp.sum(fisher * fisher))

    return lowering.fast(lambda v: jax.lax.map(one, v))(x)


def fisher_rows(name: str, size: int, rounds: int) -> list[str]:
    """The spectrum by the Gram matrix, and F itself without and with eigenvalues."""
    network = networks.build(name)
    x, _ = networks.batch(network, size)
    ways = {
        "gram": metrics.fisher_spectrum,
        "matrix": functools.partial(explicit, spectrum=False),
        "eigenvalues": functools.partial(explicit, spectrum=True),
    }
    ways = {
        way: jax.jit(f).lower(network.logits, x).compile() for way, f in ways.items()
    }
    found = {way: f(network.logits, x) for way, f in ways.items()}
    gram = found["gram"]
    difference = max(
        jnp.abs(gram.frobenius / found["matrix"] - 1).max(),
        jnp.abs(gram.spectral / found["eigenvalues"] - 1).max(),
    )
    runs = {way: functools.partial(f, network.logits, x) for way, f in ways.items()}
    best = {way: t.best for way, t in timing.compare(runs, rounds).items()}
    analyses: list[Any] = [f.memory_analysis() for f in ways.values()]
    memory = [analysis.temp_size_in_bytes / 2**20 for analysis in analyses]
    cells = [
        name,
        int(np.prod(network.shape)),
        size,
        *(f"{1e3 * best[way] / size:.1f}" for way in ways),
        f"{best['matrix'] / best['gram']:.1f}",
        f"{best['eigenvalues'] / best['gram']:.0f}",
        *(f"{mib:.0f}" for mib in memory),
        f"{difference:.0e}",
    ]
    return ["| " + " | ".join(map(str, cells)) + " |"]


def main() -> None:
    """Prints three Markdown tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = list(networks.BUILDERS)
    defaults = ["flax_cnn", "cnn", "resnet20", "vgg13"]
    parser.add_argument("--models", nargs="+", choices=choices, default=defaults)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs-of", nargs="+", type=int, default=[1000, 2000])
    parser.add_argument("--data", help=".npz with images and labels")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")

    print("| network | batch | forward ms/image | split ms/pair | ÷ forward |")
    print("|---|---|---|---|---|")
    for name in args.models:
        print(*split_rows(name, args.batch_size, args.rounds), sep="\n", flush=True)

    print("\n| network | images | ordered pairs | seconds | million pairs/s |")
    print("|---|---|---|---|---|")
    print(*all_pairs_row("cnn", args.pairs_of, args.data), sep="\n", flush=True)

    print(
        "\n| network | d | batch | Gram ms/image | d×d | with eigenvalues |"
        " d×d ÷ Gram | eigenvalues ÷ Gram | Gram MiB | d×d | with eigenvalues |"
        " difference |"
    )
    print("|" + "---|" * 12)
    for name in args.models:
        size = min(args.batch_size, 4)
        print(*fisher_rows(name, size, min(args.rounds, 3)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
