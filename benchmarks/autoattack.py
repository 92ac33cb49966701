"""AutoAttack against the reference: verdicts and wall time on the same trained weights.

    python -m benchmarks.autoattack parity mnist-madry --norm Linf --points 1000
    python -m benchmarks.autoattack speed mnist-madry
    python -m benchmarks.autoattack ladder mnist-madry --points 1000
    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.autoattack variants digits-madry

`parity` attacks the same test images with robjax and with pyautoattack, which runs the
network natively in PyTorch, and compares robust accuracies and verdicts. `speed` times
both on 256 images (or fewer) that stay robust, and on as many of which half fall to
PGD-40, and adds the floor: 1,910 input gradients and 5,942 forward passes for a robust
image, at the speed of the compiled functions alone. `ladder` gives the robust accuracy
under stronger and stronger attacks. `variants` lists the images whose verdict depends
on the batch size, the devices or the precision of the attacks. `parity` and `speed`
need torch and pyautoattack.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing, trained
from benchmarks.attack_throughput import fast_input_gradient
from robjax import attacks, data, evaluation, lowering
from robjax.balls import L2, Linf
from robjax.runs import files

KEY = jax.random.key(0)
FOLDER = Path("results/autoattack")
GRADIENTS, FORWARDS = 1910, 5942
EPS_L2 = {"digits": 0.6, "mnist": 1.5, "cifar10": 0.5}


class Side(NamedTuple):
    """What one library gave: seconds (and of CPU time), images that stay robust [N]."""

    seconds: float
    cpu: float
    robust: np.ndarray


def images_of(name: str, points: int) -> tuple[Any, jax.Array, jax.Array, float]:
    """The network, the first `points` images and labels, and ε in L∞.

    (Of digits the training images follow the few test images.)
    """
    logits_fn, test, eps = trained.load(name)
    images, labels = test.images, test.labels
    if points > len(labels):
        train = data.load(test.name, "train")
        images = np.concatenate([images, train.images])
        labels = np.concatenate([labels, train.labels])
    x = data.to_float(images[:points], test.scale)
    return logits_fn, x, jnp.asarray(labels[:points]), eps


def robjax_side(logits_fn, x, y, ball, run_dir: Path | None = None, **options) -> Side:
    """`attacks.autoattack`, standard; the seconds are of this call (resumed or not)."""
    start, cpu = time.perf_counter(), time.process_time()
    options |= {"key": KEY, "ball": ball, "run_dir": run_dir}
    result = attacks.autoattack(logits_fn, x, y, resume=run_dir is not None, **options)
    print(result.robust_accuracy, flush=True)
    return Side(time.perf_counter() - start, time.process_time() - cpu, ~result.success)


def reference_side(logits_fn: Any, x: jax.Array, y: jax.Array, ball: Any) -> Side:
    """pyautoattack on the network in PyTorch, standard."""
    import torch  # pyright: ignore[reportMissingImports]
    from pyautoattack import AutoAttack  # pyright: ignore[reportMissingImports]

    from benchmarks.peers.torch_models import images_of, labels_of, to_torch

    model, (variables,) = logits_fn.func.__self__, logits_fn.args
    twin: Any = to_torch(model, variables)
    images, labels = images_of(x), labels_of(y)
    with jax.default_matmul_precision("float32"):
        ours = np.asarray(logits_fn(x[:8]))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        np.testing.assert_allclose(twin(images[:8]).cpu(), ours, atol=1e-3)
    norm: Any = type(ball).__name__
    attack: Any = AutoAttack(
        twin, norm=norm, eps=ball.eps, seed=0, device=images.device.type
    )
    start, cpu = time.perf_counter(), time.process_time()
    moved = attack.run_standard_evaluation(images, labels, batch_size=256)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    moved = moved[0] if isinstance(moved, tuple) else moved
    with torch.no_grad():
        predicted = torch.cat([twin(part).argmax(1) for part in moved.split(256)])
    return Side(seconds, cpu, (predicted == labels).cpu().numpy())


def parity(name: str, norm: str, points: int) -> None:
    """One row of the parity table; the verdicts go to results/autoattack/."""
    logits_fn, x, y, eps = images_of(name, points)
    ball = Linf(eps) if norm == "Linf" else L2(EPS_L2[name.split("-")[0]])
    clean = np.mean(np.argmax(logits_fn(x), axis=1) == y)
    ours = robjax_side(logits_fn, x, y, ball, FOLDER / f"{name}-{norm}-{len(x)}")
    theirs = reference_side(logits_fn, x, y, ball)
    only_ours = np.count_nonzero(theirs.robust & ~ours.robust)
    only_theirs = np.count_nonzero(ours.robust & ~theirs.robust)
    print(
        f"| {name} | {norm} {ball.eps:.4g} | {len(x)} | {100 * clean:.2f} | "
        f"{100 * ours.robust.mean():.2f} | {100 * theirs.robust.mean():.2f} | "
        f"{only_ours} | {only_theirs} | {ours.seconds:.0f} | {theirs.seconds:.0f} |",
        flush=True,
    )
    columns = {"ours": ours.robust, "theirs": theirs.robust}
    files.save_npz(FOLDER / f"{name}-{norm}-{len(x)}.npz", columns)


def choose(logits_fn, x, y, eps: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` images that PGD-40 leaves robust, and as many of which half fall to it."""
    table = evaluation.evaluate(
        logits_fn,
        (np.asarray(x), np.asarray(y)),
        {"pgd": functools.partial(attacks.pgd, ball=Linf(eps), early_exit=True)},
        key=KEY,
    )
    robust = np.flatnonzero(table.robust)
    fallen = np.flatnonzero(table.correct & ~table.robust)
    half = size // 2
    return robust[:size], np.concatenate([robust[:half], fallen[:half]])


def speed(name: str, size: int) -> None:
    """The table of wall times on `size` images, floor included."""
    logits_fn, x, y, eps = images_of(name, 3000)
    ball = Linf(eps)
    forward = jax.jit(lambda fn, v: lowering.fast(fn, forward=True)(v))
    gradient = jax.jit(fast_input_gradient)
    batch = x[:size], y[:size]
    alone = timing.compare(
        {
            "forward": lambda: forward(logits_fn, batch[0]),
            "gradient": lambda: gradient(logits_fn, *batch),
        },
        rounds=5,
    )
    forward_s, gradient_s = (alone[k].best / size for k in ("forward", "gradient"))
    floor = GRADIENTS * gradient_s + FORWARDS * forward_s
    print(
        f"forward {1e3 * forward_s:.3f} ms, input gradient {1e3 * gradient_s:.3f} ms "
        f"an image; floor {floor:.3f} s for a robust image\n\n"
        "| set | images | robust | pyautoattack's | robjax s | compiling s | "
        "pyautoattack s | ratio | robjax CPU s | pyautoattack CPU s | floor s |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    sets = choose(logits_fn, x, y, eps, size)
    for which, rows in zip(("robust", "half falls"), sets, strict=True):
        images, labels = x[rows], y[rows]
        compiling = warm_up(logits_fn, images, labels)
        ours = robjax_side(logits_fn, images, labels, ball)
        theirs = reference_side(logits_fn, images, labels, ball)
        robust = np.count_nonzero(ours.robust)
        print(
            f"| {which} | {len(rows)} | {robust} | "
            f"{np.count_nonzero(theirs.robust)} | {ours.seconds:.0f} | "
            f"{compiling:.0f} | {theirs.seconds:.0f} | "
            f"{theirs.seconds / ours.seconds:.2f} | {ours.cpu:.0f} | "
            f"{theirs.cpu:.0f} | {floor * robust:.0f} |",
            flush=True,
        )


def warm_up(logits_fn: Any, x: jax.Array, y: jax.Array) -> float:
    """Compiles every attack for all images and for half; at ε = 1 all fall at once."""
    start = time.perf_counter()
    for size in (len(x), len(x) // 2):
        attacks.autoattack(
            logits_fn, x[:size], y[:size], key=KEY, ball=Linf(1.0), version="individual"
        )
    return time.perf_counter() - start


def ladder(name: str, points: int) -> None:
    """Robust accuracy under FGSM, PGD-100, PGD-100 with 50 restarts, AutoAttack."""
    logits_fn, x, y, eps = images_of(name, points)
    ball, start = Linf(eps), time.perf_counter()
    pgd = functools.partial(
        attacks.pgd, ball=ball, steps=100, step_size=jnp.asarray(0.01), early_exit=True
    )
    rungs = {
        "FGSM": functools.partial(attacks.fgsm, ball=ball),
        "PGD-100": pgd,
        "PGD-100 × 50": functools.partial(pgd, restarts=50),
    }
    table = evaluation.evaluate(
        logits_fn, (np.asarray(x), np.asarray(y)), rungs, key=KEY
    )
    print(table.table(), f"\n{time.perf_counter() - start:.0f} s")
    strongest = robjax_side(logits_fn, x, y, ball, FOLDER / f"{name}-Linf-{len(x)}")
    rate = evaluation.proportion(strongest.robust)
    print(f"  AutoAttack  {rate}\n{time.perf_counter() - start:.0f} s")


def variants(name: str, norm: str, points: int) -> None:
    """The images with another verdict in other batches, on all devices, in bfloat16."""
    logits_fn, x, y, eps = images_of(name, points)
    ball = Linf(eps) if norm == "Linf" else L2(EPS_L2[name.split("-")[0]])
    one = jax.devices()[:1]
    first = None
    for what, options in {
        "batches of 64": {"batch_size": 64, "devices": one},
        "batches of 256": {"batch_size": 256, "devices": one},
        f"{jax.device_count()} devices": {"batch_size": 64},
        "bfloat16": {"batch_size": 64, "devices": one, "dtype": "bfloat16"},
    }.items():
        side = robjax_side(logits_fn, x, y, ball, **options)
        first = side.robust if first is None else first
        only_first, only_this = first & ~side.robust, side.robust & ~first
        print(
            f"| {name} | {norm} {ball.eps:.4g} | {len(x)} | {what} | "
            f"{100 * side.robust.mean():.2f} | {np.flatnonzero(only_this).tolist()} | "
            f"{np.flatnonzero(only_first).tolist()} | {side.seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["parity", "speed", "ladder", "variants"])
    parser.add_argument("networks", nargs="+", help="as mnist-madry (`trained`)")
    parser.add_argument("--norm", nargs="+", choices=["Linf", "L2"], default=["Linf"])
    parser.add_argument("--points", type=int, default=1000)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n", flush=True)
    if args.what == "parity":
        print(
            "| network | ball | images | clean % | robjax % | pyautoattack % | "
            "only robjax breaks | only pyautoattack | robjax s | pyautoattack s |\n"
            "|---|---|---|---|---|---|---|---|---|---|"
        )
    if args.what == "variants":
        print(
            "| network | ball | images | run | robust % | robust here only | "
            "robust in the first only | s |\n|---|---|---|---|---|---|---|---|"
        )
    for name in args.networks:
        if args.what == "parity":
            for norm in args.norm:
                parity(name, norm, args.points)
        elif args.what == "variants":
            for norm in args.norm:
                variants(name, norm, args.points)
        elif args.what == "speed":
            speed(name, min(args.points, 256))
        else:
            ladder(name, args.points)


if __name__ == "__main__":
    main()
