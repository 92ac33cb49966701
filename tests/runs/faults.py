"""Kills runs at random moments and damages their files; run by hand, and in test-slow.

    python -m tests.runs.faults kill 20      each kind of run 20 times
    python -m tests.runs.faults damage 60    60 flipped bits for each file, and more

A run is a child of this process, which never uses JAX itself. So a child starts at
once; a cache of compiled functions does the rest. Every line that is printed says how
often what happened; it exits with 1 if a result differs or an error is not in words.
"""

import collections
import functools
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax import attacks, data, evaluation, metrics, training
from robjax.balls import Linf
from robjax.models import MLP
from robjax.runs import files
from robjax.training import objectives

Result = dict[str, np.ndarray]


def network(w, x):
    return 3 * jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w)


def train(folder: pathlib.Path) -> Result:
    """Nine steps in each of three epochs, with a checkpoint every second step."""
    state = training.fit(
        MLP(10, widths=(8,)),
        data.subset(data.load("digits", "train"), 300),
        objective=functools.partial(
            objectives.adversarial, ball=Linf(0.1), steps=2, step_size=0.05
        ),
        config=training.FitConfig(
            epochs=3, batch_size=32, ema_decay=0.9, checkpoint_every=2
        ),
        run_dir=folder,
        resume=True,
        devices=jax.devices()[:1],
        progress=False,
    )
    records = files.load_json_lines(folder / "metrics.jsonl")
    for record in records:
        record.pop("images_per_second", None)
    leaves = map(np.asarray, jax.tree.leaves(state))
    return {f"{n:03d}": leaf for n, leaf in enumerate(leaves)} | {
        "records": np.array([files.json_line(record) for record in records])
    }


def evaluate(folder: pathlib.Path) -> Result:
    """Three attacks in turn on 60 images, eight at a time."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 4)).astype(np.float32)
    x = rng.uniform(size=(60, 3, 4, 1)).astype(np.float32)
    ball = Linf(0.06)
    suite = {
        "pgd": functools.partial(attacks.pgd, ball=ball, steps=1, step_size=0.01),
        "apgd": functools.partial(attacks.apgd, ball=ball, steps=3),
        "square": functools.partial(attacks.square, ball=ball, queries=8),
    }
    found = evaluation.evaluate(
        Partial(network, jnp.asarray(w)),
        (x, np.asarray(network(w, x).argmax(axis=1))),
        suite,
        key=jax.random.key(5),
        cascade=True,
        batch_size=8,
        keep_images=True,
        run_dir=folder,
        resume=True,
        devices=jax.devices()[:1],
    )
    assert found.x_adv is not None
    tables = {
        f"{name}-{field}": value
        for name, table in found.attacks.items()
        for field, value in table._asdict().items()
    }
    return {**tables, "x_adv": found.x_adv, "fooled_by": found.fooled_by}


def interact(folder: pathlib.Path) -> Result:
    """Eleven orders of two games of 64 players."""
    w = jax.random.normal(jax.random.key(0), (64, 3))
    x = jax.random.uniform(jax.random.key(1), (8, 8))
    game = metrics.interactions.image_game(
        Partial(network, w), (x, 1 - x), 0, grid=(8, 8), devices=jax.devices()[:1]
    )
    found = metrics.interactions.sampled(
        game, 64, key=jax.random.key(0), orders=range(0, 63, 6), blocks=60, contexts=4,
        run_dir=folder, resume=True,
    )  # fmt: skip
    return found._asdict()


RUNS = {"training": train, "evaluation": evaluate, "interactions": interact}


def child(function) -> int:
    """Starts a function in a process of its own, and returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        code = int(function() is False)
    finally:
        sys.stdout.flush()
        os._exit(code)


def keep(kind: str, folder: pathlib.Path, result: pathlib.Path) -> None:
    files.save_npz(result, RUNS[kind](folder))


def run_child(kind: str, folder: pathlib.Path, result: pathlib.Path) -> int:
    return child(functools.partial(keep, kind, folder, result))


def same(one: Result, other: Result) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and value.tobytes() == other[name].tobytes()
        for name, value in one.items()
    )


def kill(kind: str, times: int, place: pathlib.Path, seed: int) -> bool:
    """Kills a run at random moments after its first file; goes on and compares."""
    draw = random.Random(seed)
    for name in ("warm", "whole"):  # the first one compiles
        process = run_child(kind, place / name, place / f"{name}.npz")
        while not (place / name).exists():
            time.sleep(0.0005)
        begun = time.monotonic()
        assert os.waitpid(process, 0)[1] == 0
    lasts = time.monotonic() - begun
    whole = files.load_npz(place / "whole.npz")
    print(f"{kind}: takes {lasts:.2f} s", flush=True)
    found = collections.Counter()
    names = map(str, itertools.count())
    while found["killed"] < times:
        folder = place / next(names)
        process = run_child(kind, folder, place / "cut.npz")
        while not folder.exists():
            time.sleep(0.0005)
        begun = time.monotonic()
        end = begun + draw.uniform(0, lasts)
        while time.monotonic() < end and not os.waitpid(process, os.WNOHANG)[0]:
            time.sleep(0.0005)
        if time.monotonic() < end:  # it is faster than the first one was
            lasts = time.monotonic() - begun
            continue
        os.kill(process, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            continue  # it had just ended
        found["killed"] += 1
        found["while writing"] += any(folder.rglob(".*"))
        process = run_child(kind, folder, place / "resumed.npz")
        ended = os.waitpid(process, 0)[1] == 0
        equal = ended and same(files.load_npz(place / "resumed.npz"), whole)
        found["equal" if equal else "DIFFERENT"] += 1
    print(f"{kind}: {dict(found)}", flush=True)
    return found["equal"] == times


def damages(content: bytes, flips: int, draw: random.Random):
    """Names of damages, and what they leave of a file; None: nothing."""
    yield "removed", None
    for share in (0, 0.3, 0.9):
        yield "truncated", content[: int(share * len(content))]
    yield "truncated", content[:-1]
    for _ in range(flips if content else 0):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield "flipped", bytes(changed)


def damage(kind: str, flips: int, place: pathlib.Path, seed: int) -> bool:
    """Damages every file of a finished run in turn, takes it up again and compares."""
    draw = random.Random(seed)
    whole = RUNS[kind](place / "whole")
    ones = sorted(path for path in (place / "whole").rglob("*") if path.is_file())
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    fine = True
    for file in ones:
        name = file.relative_to(place / "whole")
        what = "checkpoint" if "checkpoints" in name.parts else name.parts[0]
        what = "batch or part" if name.suffix == ".npz" else what
        content = file.read_bytes()
        per_file = flips if what in ("run.json", "metrics.jsonl") else flips // 20 + 1
        for how, rest in damages(content, per_file, draw):
            folder = place / "damaged"
            shutil.copytree(place / "whole", folder)
            (folder / name).unlink()
            if rest is not None:
                (folder / name).write_bytes(rest)
            ended = outcome(kind, folder, whole)
            found[f"{what} {how}"][ended] += 1
            if ended.isupper():
                fine = False
                print(f"  {name} {how}: {ended}", flush=True)
            shutil.rmtree(folder)
    for what, counts in found.items():
        print(f"{kind}, {what}: {dict(counts)}", flush=True)
    return fine


def outcome(kind: str, folder: pathlib.Path, whole: Result) -> str:
    """What became of a damaged run, in capitals if that should not happen."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            result = RUNS[kind](folder)
        except (ValueError, OSError) as error:
            words = str(error)
            helps = str(folder) in words and (
                "name another" in words or "with" in words
            )
            return "error in words" if helps else f"NO HELP: {error!r}".upper()
        except Exception as error:
            return f"BARE: {error!r}".upper()
    if not same(result, whole):
        return "WRONG NUMBERS"
    return "equal, with a warning" if told else "equal"


def main() -> None:
    what, number = sys.argv[1], int(sys.argv[2])
    kinds = sys.argv[3:] or list(RUNS)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    fine = True
    for kind in kinds:
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
            if what == "kill":
                fine &= kill(kind, number, folder, seed=0)
            else:
                process = child(functools.partial(damage, kind, number, folder, 0))
                fine &= os.waitpid(process, 0)[1] == 0
    sys.exit(not fine)


if __name__ == "__main__":
    main()
