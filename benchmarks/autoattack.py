"""AutoAttack against the reference: verdicts and wall time on the same trained weights.

    python -m benchmarks.autoattack parity mnist-madry --norm Linf --points 1000
    python -m benchmarks.autoattack speed mnist-madry
    python -m benchmarks.autoattack ladder mnist-madry --points 1000
    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.autoattack variants digits-madry
    python -m benchmarks.autoattack race --points 1000
    python -m benchmarks.autoattack masked --points 128

`parity` attacks the same test images with robjax and with pyautoattack, which runs the
network natively in PyTorch, and compares robust accuracies and verdicts. `speed` times
both on 256 images (or fewer) that stay robust, and on as many of which half fall to
PGD-40, and adds the floor: 1,910 input gradients and 5,942 forward passes for a robust
image, at the speed of the compiled functions alone. `ladder` gives the robust accuracy
under stronger and stronger attacks. `variants` lists the images whose verdict depends
on the batch size, the devices or the precision of the attacks. `race` compares the
suites "fast" and "standard" and the audited answer on the networks of RACE, or those of
them that are named, and keeps what it found in results/race/; with torch and
pyautoattack, theirs too. `masked` audits the defences of `benchmarks.masked`, or those
that are named, and compares with "standard" on all images. `parity` and `speed` need
torch and pyautoattack.
"""

import argparse
import functools
import importlib.util
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import masked, timing, trained
from benchmarks.attack_throughput import fast_input_gradient
from robjax import attacks, data, evaluation, lowering
from robjax.balls import L1, L2, Ball, Linf
from robjax.runs import files

KEY = jax.random.key(0)
FOLDER = Path("results/autoattack")
GRADIENTS, FORWARDS = 1910, 5942
EPS_L2 = {"digits": 0.6, "mnist": 1.5, "cifar10": 0.5}
# What the suite "fast" is judged on; it was chosen on other networks (README).
RACE: tuple[tuple[str, Ball], ...] = (
    ("digits-trades-mixer", Linf(0.15)),
    ("digits-madry-resnet", Linf(0.15)),
    ("mnist-standard-small", Linf(0.1)),
    ("mnist-trades-small", Linf(0.3)),
    ("mnist-madry-small", Linf(0.3)),
    ("cifar10-standard-small", Linf(1 / 255)),
    ("cifar10-trades-small", Linf(8 / 255)),
    ("digits-trades-mixer", L2(0.5)),
    ("mnist-standard-small", L2(1.0)),
    ("digits-madry-resnet", L1(1.5)),
    ("mnist-madry", Linf(0.3)),
)


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
        "| set | images | robust | pyautoattack's | fast's | robjax s | compiling s | "
        "pyautoattack s | ratio | fast s | ratio | robjax CPU s | pyautoattack CPU s | "
        "floor s |\n|" + 14 * "---|",
        flush=True,
    )
    sets = choose(logits_fn, x, y, eps, size)
    for which, rows in zip(("robust", "half falls"), sets, strict=True):
        images, labels = x[rows], y[rows]
        compiling = warm_up(logits_fn, images, labels)
        ours = robjax_side(logits_fn, images, labels, ball)
        fast, fast_s, _ = evaluated(logits_fn, images, labels, ball, "fast")
        theirs = reference_side(logits_fn, images, labels, ball)
        robust = np.count_nonzero(ours.robust)
        print(
            f"| {which} | {len(rows)} | {robust} | "
            f"{np.count_nonzero(theirs.robust)} | {np.count_nonzero(fast.robust)} | "
            f"{ours.seconds:.0f} | {compiling:.0f} | {theirs.seconds:.0f} | "
            f"{theirs.seconds / ours.seconds:.2f} | {fast_s:.1f} | "
            f"{theirs.seconds / fast_s:.1f} | {ours.cpu:.0f} | "
            f"{theirs.cpu:.0f} | {floor * robust:.0f} |",
            flush=True,
        )


def warm_up(logits_fn: Any, x: jax.Array, y: jax.Array) -> float:
    """Compiles every attack for all images and for half; at ε = 1 all fall at once."""
    start = time.perf_counter()
    for size in (len(x), len(x) // 2):
        images, labels = x[:size], y[:size]
        evaluated(logits_fn, images, labels, Linf(1.0), "fast", cascade=False)
        attacks.autoattack(
            logits_fn, images, labels, key=KEY, ball=Linf(1.0), version="individual"
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


def evaluated(logits_fn, x, y, ball, version, cascade=True):
    """A suite by `evaluate`: the evaluation, seconds, and seconds of CPU time."""
    start, cpu = time.perf_counter(), time.process_time()
    table = evaluation.evaluate(
        logits_fn,
        (np.asarray(x), np.asarray(y)),
        attacks.suite(version, ball),
        key=KEY,
        cascade=cascade,
    )
    return table, time.perf_counter() - start, time.process_time() - cpu


def run_suite(name: str, points: int, ball: Ball, version: str) -> dict[str, Any]:
    """Verdicts [N] of a suite, forward-equivalents [N] and seconds; kept on the disk.

    A query of Auto-PGD is a gradient, 3 forward passes; so is each second one of FAB.
    """
    norm = f"{type(ball).__name__}-{float(ball.eps):.4g}"
    path = FOLDER.parent / "race" / f"{name}-{norm}-{points}-{version}.npz"
    if path.exists():
        return dict(np.load(path))
    logits_fn, x, y, _ = images_of(name, points)
    if version == "pyautoattack":
        found = reference_side(logits_fn, x, y, ball)._asdict()
    else:
        table, seconds, cpu = evaluated(logits_fn, x, y, ball, version)
        calls = np.zeros(len(y))
        for attack, rows in table.attacks.items():
            weight = {"apgd": 3, "fab-": 2}.get(attack[:4], 1)
            calls += weight * np.maximum(rows.queries, 0)
        warned = np.asarray(table.warnings, dtype=str)
        found = {"robust": table.robust, "seconds": seconds, "cpu": cpu}
        found |= {"clean": table.correct, "calls": calls, "warned": warned}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_npz(path, {key: np.asarray(value) for key, value in found.items()})
    return dict(np.load(path))


def look_up(logits_fn, x, y, *, key, bounds, broken):
    """An attack of known verdicts: pixel 0 numbers the image, pixel 1 is moved."""
    del logits_fn, y, key, bounds
    row = jnp.round(x[:, 0] * len(broken)).astype(jnp.int32)
    return x.at[:, 1].set(jnp.where(broken[row], 1.0, 0.0))


def audits_of(fast: np.ndarray, full: np.ndarray, repetitions: int) -> list[Any]:
    """`audited` with as many keys, on images [N] of which both verdicts are known."""
    count = len(fast)
    rows = np.stack([np.arange(count) / count, np.zeros(count)], 1).astype(np.float32)
    suites = [
        {"known": functools.partial(look_up, broken=jnp.asarray(~robust))}
        for robust in (fast, full)
    ]
    model = jax.tree_util.Partial(lambda x: jnp.stack([2 - 3 * x[:, 1], x[:, 1]], 1))
    return [
        evaluation.audited(
            model,
            (rows, np.zeros(count, int)),
            *suites,
            key=jax.random.key(number),
            batch_size=count,
        )
        for number in range(repetitions)
    ]


def race(chosen: list[str], points: int, repetitions: int) -> None:
    """One row for each network and ball of `RACE`.

    An audit gives an image the verdict of "standard", at the same price, because the
    draws of an image are its own. So the audits are repeated on the verdicts.
    """
    peer = importlib.util.find_spec("pyautoattack") is not None
    print(
        "| network | ball | images | clean % | standard % | fast % | only fast | "
        "only standard | calls, standard ÷ fast | ÷ audited | half-width | intervals "
        "that hold | CPU s, standard | fast | pyautoattack %, s |\n|" + "---|" * 15
    )
    for name, ball in RACE:
        if chosen and name not in chosen:
            continue
        fast, full = (run_suite(name, points, ball, v) for v in ("fast", "standard"))
        a, b = fast["robust"], full["robust"]
        audits = audits_of(a, a & b, repetitions)
        calls = [fast["calls"].sum() + full["calls"][t.audited].sum() for t in audits]
        holds = np.mean([t.low <= np.mean(a & b) <= t.high for t in audits])
        width = np.mean([t.high - t.low for t in audits]) / 2
        other = ""
        if peer and "resnet" not in name and "mixer" not in name:
            theirs = run_suite(name, points, ball, "pyautoattack")
            other = f"{100 * theirs['robust'].mean():.2f}, {theirs['cpu']:.0f}"
        print(
            f"| {name} | {type(ball).__name__} {float(ball.eps):.4g} | {len(a)} | "
            f"{100 * full['clean'].mean():.2f} | {100 * b.mean():.2f} | "
            f"{100 * a.mean():.2f} | {np.count_nonzero(b & ~a)} | "
            f"{np.count_nonzero(a & ~b)} | "
            f"{full['calls'].sum() / fast['calls'].sum():.1f} | "
            f"{full['calls'].sum() / np.mean(calls):.1f} | {100 * width:.2f} | "
            f"{100 * holds:.1f} % | {full['cpu']:.0f} | {fast['cpu']:.0f} | {other} |",
            flush=True,
        )


def audit_masked(kinds: list[str], points: int) -> None:
    """One row for each defence of `benchmarks.masked`: does the interval hold?"""
    print(
        "| digits-madry behind | images | clean % | fast % | audited, % | audited "
        "images | said not to be trusted | standard % | outside, points |\n"
        "|" + 9 * "---|",
        flush=True,
    )
    network, x, y, eps = images_of("digits-madry", points)
    ball = Linf(eps)
    rows = np.asarray(x), np.asarray(y)
    for kind in kinds or [None, *masked.KINDS]:
        model = masked.mask(network, kind)
        fast, full = (attacks.suite(version, ball) for version in ("fast", "standard"))
        found = evaluation.audited(model, rows, fast, full, key=KEY)
        exact = evaluation.evaluate(model, rows, full, key=KEY, cascade=True)
        share = np.mean(exact.robust)
        outside = max(found.low - share, share - found.high, 0)
        print(
            f"| {kind or 'nothing'} | {len(x)} | {100 * exact.correct.mean():.2f} "
            f"| {100 * found.cheap.robust.mean():.2f} | "
            f"{100 * found.low:.2f} to {100 * found.high:.2f} | "
            f"{np.count_nonzero(found.audited)} of {found.cheap.robust.sum()} | "
            f"{'' if found.trusted else 'yes'} | {100 * share:.2f} | "
            f"{100 * outside:.2f} |",
            flush=True,
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "what", choices=["parity", "speed", "ladder", "variants", "race", "masked"]
    )
    parser.add_argument("networks", nargs="*", help="as mnist-madry (`trained`)")
    parser.add_argument("--norm", nargs="+", choices=["Linf", "L2"], default=["Linf"])
    parser.add_argument("--points", type=int, default=1000)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n", flush=True)
    if args.what == "race":
        race(args.networks, args.points, repetitions=200)
        return
    if args.what == "masked":
        audit_masked(args.networks, args.points)
        return
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
