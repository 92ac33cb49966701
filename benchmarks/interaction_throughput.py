"""Cost and variance of the multi-order interactions against floors and a peer.

    python -m benchmarks.interaction_throughput [--networks …] [--peer]

Four tables: masked forward passes against plain ones of the same batch; exact mode for
8 images and their adversarial versions, and with `--peer` one image against shapiq's
exact computer around the same compiled game; forwards for each difference; and the
standard deviation of a mean interaction, over repetitions at equal forwards, against
the published design (some pairs, each with contexts of its own), on trained digits.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing, trained
from robjax import attacks, data
from robjax.balls import Linf
from robjax.metrics import interactions
from robjax.metrics.interactions import ImageGame, design_pairs

_BATCH = 128
_GRIDS = {28: (7, 7), 32: (8, 8)}


def forward_row(name: str, rounds: int) -> str:
    """Masked and plain forward passes of one network, in batches of the same size."""
    network = networks.build(name)
    x, y = networks.batch(network, _BATCH)
    grid = _GRIDS[network.shape[0]]
    game = interactions.image_game(
        network.logits, x[0], y[0], grid=grid, batch_size=_BATCH,
        devices=jax.local_devices()[:1],
    )  # fmt: skip
    batches = 16
    masks = np.random.default_rng(0).random((batches * _BATCH, game.players)) < 0.5
    plain = jax.jit(lambda fn, v: fn(v))
    times = timing.compare(
        {
            "plain": lambda: [plain(network.logits, x) for _ in range(batches)],
            "masked": lambda: game(masks),
        },
        rounds,
    )
    rate = {way: len(masks) / t.best for way, t in times.items()}
    return (
        f"| {name} | {_BATCH} | {rate['plain']:.0f} | {rate['masked']:.0f} | "
        f"{rate['masked'] / rate['plain']:.2f} |"
    )


def digits_game(count: int, grid: tuple[int, int] = (4, 4)) -> ImageGame:
    """The games of trained digits and their adversarial versions."""
    logits_fn, test, eps = trained.load("digits-standard")
    x = data.to_float(test.images[:count], test.scale)
    y = jnp.asarray(test.labels[:count])
    adversarial = attacks.pgd(
        logits_fn, x, y, key=jax.random.key(0), ball=Linf(eps / 2), steps=20
    )
    return interactions.image_game(logits_fn, (x, adversarial.x_adv), y, grid=grid)


def exact_rows(peer: bool) -> list[str]:
    """Exact mode, compilation included, and the peer in the same run."""
    game = digits_game(8)
    start = time.perf_counter()
    found = interactions.exact(game, 16)
    seconds = time.perf_counter() - start
    parts = interactions.attack_utility(found)
    error = np.abs(parts.total - parts.value) / np.abs(parts.value)
    rows = [
        f"| exact, 8 images and 8 adversarial | {seconds:.1f} | {error.max():.0e} |"
    ]
    if peer:
        rows += peer_rows()
    return rows


def peer_rows() -> list[str]:
    """One image: all pairs and Shapley values, by both from the same compiled game."""
    import shapiq  # pyright: ignore[reportMissingImports]

    logits_fn, test, _ = trained.load("digits-standard")
    x = data.to_float(test.images[:1], test.scale)[0]
    game = interactions.image_game(logits_fn, x, test.labels[0])
    game(np.ones((1, 16), bool))
    start = time.perf_counter()
    found = interactions.exact(game, 16)
    ours = time.perf_counter() - start

    def play(masks: np.ndarray) -> np.ndarray:
        return np.asarray(game(masks), np.float64)

    empty = float(play(np.zeros((1, 16), bool))[0])
    start = time.perf_counter()
    computer = shapiq.ExactComputer(lambda masks: play(masks) - empty, n_players=16)
    index = computer("SII", order=2)
    values = computer("SV", order=1)
    theirs = time.perf_counter() - start
    upper = zip(*np.triu_indices(16, 1), strict=True)
    mean = found.interactions.mean(0)
    error = max(abs(index[(int(i), int(j))] - mean[i, j]) for i, j in upper)
    error = max(error, *(abs(values[(i,)] - found.shapley[i]) for i in range(16)))
    return [
        f"| exact, one image | {ours:.2f} | |",
        f"| shapiq, one image (one order) | {theirs:.2f} | {error:.0e} |",
        f"| shapiq ÷ exact | {theirs / ours:.1f} | |",
    ]


def difference_rows() -> list[str]:
    """Forwards for each difference of 256 players, at every usual order together."""
    rows = []
    for pairs in ("all", "adjacent", 2):
        found = interactions.sampled(
            lambda masks: masks[:, 0], 256, key=jax.random.key(0), pairs=pairs,
            blocks=20,
        )  # fmt: skip
        ratio = found.forwards[1:-1].sum() / found.differences[1:-1].sum()
        rows.append(f"| {pairs} | {ratio:.2f} | {found.forwards[[0, -1]].tolist()} |")
    return rows


def nested(
    game: Callable, n: int, pairs: np.ndarray, order: int, rng: np.random.Generator,
    count: int, contexts: int,
) -> float:  # fmt: skip
    """The published design: some pairs, each with contexts of its own."""
    chosen = pairs[rng.permutation(len(pairs))[:count]].repeat(contexts, axis=0)
    draws = rng.random((len(chosen), n))
    np.put_along_axis(draws, chosen, 2.0, axis=1)
    base = draws.argsort(axis=1).argsort(axis=1) < order
    first, second = (np.arange(n) == chosen[:, [k]] for k in (0, 1))
    masks = np.stack([base, base | first, base | second, base | first | second])
    v = np.asarray(game(masks.reshape(-1, n)), np.float64).reshape(4, -1)
    return float((v[0] - v[1] - v[2] + v[3]).mean())


def variance_rows(repeats: int) -> list[str]:
    """Standard deviations at equal forwards, on a trained network with 64 players."""
    logits_fn, test, _ = trained.load("digits-standard")
    x = data.to_float(test.images[:1], test.scale)[0]
    game = interactions.image_game(logits_fn, x, test.labels[0], grid=(8, 8))
    n, count, contexts = 64, 20, 100
    budget = 4 * count * contexts
    rows = []
    for design in ("all", "adjacent"):
        pairs = design_pairs(design, n)
        for order in (6, 18, 31, 43, 55, 60):
            blocks = _blocks_of(budget, design, pairs)
            rng = np.random.default_rng(0)
            run = functools.partial(nested, game, n, pairs, order, rng)
            published = [run(count, contexts) for _ in range(repeats)]
            found = [
                interactions.sampled(
                    game, n, key=jax.random.key(r), orders=[order], pairs=design,
                    blocks=blocks,
                )
                for r in range(repeats)
            ]  # fmt: skip
            ours = [float(f.mean[0]) for f in found]
            stated = math.sqrt(np.mean([f.stderr[0] ** 2 for f in found]))
            before, after = np.std(published, ddof=1), np.std(ours, ddof=1)
            rows.append(
                f"| {design} | {order} | {budget} | {found[0].forwards[0]} | "
                f"{np.mean(published):.4f} | {np.mean(ours):.4f} | {before:.4f} | "
                f"{after:.4f} | {stated:.4f} | {(before / after) ** 2:.1f} |"
            )
    return rows


def _blocks_of(budget: int, design: str, pairs: np.ndarray) -> int:
    forwards = 3 + 2 * 12 + 66 if design == "all" else 3 + 2 * 64 + len(pairs)
    return budget // forwards


def main() -> None:
    """Prints four Markdown tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = list(networks.BUILDERS)
    parser.add_argument("--networks", nargs="+", choices=choices, default=["cnn"])
    parser.add_argument("--peer", action="store_true", help="compare with shapiq")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")

    print("| network | batch | plain forwards/s | masked forwards/s | ÷ plain |")
    print("|---|---|---|---|---|")
    for name in args.networks:
        print(forward_row(name, args.rounds), flush=True)

    print("\n| 16 players, digits | seconds | error |\n|---|---|---|")
    print(*exact_rows(args.peer), sep="\n", flush=True)

    print("\n| pairs of 256 players | forwards ÷ differences | at orders 0 and 254 |")
    print("|---|---|---|")
    print(*difference_rows(), sep="\n", flush=True)

    print(
        "\n| pairs | order | forwards, published | blocks | mean, published | blocks |"
        " s.d., published | blocks | s.e. stated | variance ratio |"
    )
    print("|" + "---|" * 10)
    print(*variance_rows(args.repeats), sep="\n", flush=True)


if __name__ == "__main__":
    main()
