"""What CROWN-IBP training on MNIST reaches, and how long it takes.

    python -m benchmarks.certified_training [--epochs 22] [--warmup 1]

A strided CNN (`models.StridedCNN`) on the 60,000 training images at ε = 0.1 in L∞. Then
on the whole test set: clean accuracy, and what intervals and CROWN-IBP prove; on its
first 1,000 images what the suite "fast" leaves. A proven image that it breaks would be
a defect, and is counted.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from robjax import attacks, certification, data, evaluation, models, training
from robjax.balls import Linf
from robjax.training import FitConfig, objectives

BALL = Linf(0.1)
ATTACKED = 1000
CONFIG = FitConfig(
    epochs=22,
    optimizer="adam",
    learning_rate=2e-3,
    schedule="cosine",
    warmup_epochs=1.0,
    weight_decay=0.0,
)


def main() -> None:
    """Trains, certifies, attacks, and prints one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--warmup", type=float, default=CONFIG.warmup_epochs)
    parser.add_argument("--seed", type=int, default=CONFIG.seed)
    parser.add_argument("--train-images", type=int, default=60_000)
    parser.add_argument("--run-dir", type=Path, help="where the training is kept")
    args = parser.parse_args()
    config = dataclasses.replace(
        CONFIG, epochs=args.epochs, warmup_epochs=args.warmup, seed=args.seed
    )
    train = data.load("mnist", "train")
    train = data.subset(train, min(args.train_images, len(train.labels)))
    model = models.StridedCNN(10)
    start, used = time.perf_counter(), time.process_time()
    state = training.fit(
        model,
        train,
        objective=functools.partial(objectives.crown_ibp, ball=BALL),
        config=config,
        run_dir=args.run_dir,
    )
    minutes = (time.perf_counter() - start) / 60, (time.process_time() - used) / 60

    network = training.logits_fn(model, state.weights)
    test = data.load("mnist", "test")
    x, y = data.to_float(test.images, test.scale), jnp.asarray(test.labels)
    clean = np.mean(np.argmax(jax.jit(network)(x), axis=1) == y)
    proven = certification.certify(
        network, x, y, ball=BALL, method=("ibp", "crown_ibp"), batch_size=500
    ).proven
    some = x[:ATTACKED], y[:ATTACKED]
    robust = evaluation.evaluate(
        network, some, attacks.suite("fast", BALL), key=jax.random.key(0), cascade=True
    ).robust
    broken = np.count_nonzero(proven[:ATTACKED] & ~np.asarray(robust))
    print(f"Measured on {timing.environment()}\n")
    print(
        "| seed | minutes | CPU minutes | clean | proven | proven, of the first "
        f"{ATTACKED} | attacked, of these | proven and broken |\n" + "|---" * 8 + "|"
    )
    print(
        f"| {args.seed} | {minutes[0]:.1f} | {minutes[1]:.1f} | {clean:.2%} | "
        f"{proven.mean():.2%} | {proven[:ATTACKED].mean():.2%} | "
        f"{np.mean(robust):.2%} | {broken} |"
    )


if __name__ == "__main__":
    main()
