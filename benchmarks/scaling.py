"""How training and attacks scale over devices and processes, and what memory they take.

    python -m benchmarks.scaling [--models cnn] [--batch 32] [--rounds 5]

Every device has a batch of its own (weak scaling): a step of adversarial training on N
devices takes N batches and averages the gradients; an attack shares nothing. The same
command measures a server: it takes all local accelerators, and N processes drive one
GPU each. Without an accelerator devices and processes are simulated, and all share the
cores of one CPU. So

    efficiency = images/s of N ÷ (images/s of one × H),  H = N, simulated: H = 1

and "CPU", where simulated, is the CPU time of an image against that with one device,
which other programs on the machine hardly change.

    host gap = loop − device

    loop     a step as `fit` takes it: gather rows, copy them, call; wait after `STEPS`
    device   the same steps on a batch that is on the devices already

A gap of 0 means that the host is ready before the device. Memory is what XLA plans for
a device (`memory_analysis`), and the most that was in use where the device counts it.
Each part runs in a process of its own, so that none holds the devices of another.
"""

import argparse
import functools
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import networks, timing
from robjax import attacks
from robjax.balls import Linf
from robjax.evaluation import sharding
from robjax.samples import sample_keys
from robjax.training import FitConfig, objectives, parallel
from robjax.training.state import create_state, make_optimizer
from robjax.training.step import make_step

STEPS = 4  # of training without waiting for the device
ATTACK: dict[str, Any] = {"ball": Linf(8 / 255), "steps": 5, "step_size": 2 / 255}
_LOOPS = ("loop", "device")
_MIB = 2**20


class Training:
    """Steps of adversarial training of a network, each on `size` images a device."""

    def __init__(self, name: str, size: int, devices: Sequence[parallel.Device]):
        network = networks.build(name)
        total = size * len(devices)
        x, labels = networks.batch(network, total)
        self.images, self.labels = np.asarray(255 * x, np.uint8), np.asarray(labels)
        config = FitConfig(batch_size=total, optimizer="adam", learning_rate=1e-3)
        optimizer = make_optimizer(config, 100)
        model = parallel.join_batch_norm(network.model)
        objective = functools.partial(objectives.adversarial, **ATTACK)
        step = make_step(
            model, objective, optimizer, config, steps_per_epoch=100, scale=255.0
        )
        self.step = parallel.data_parallel(step, devices)
        start = create_state(
            model, x[:1], optimizer, config, variables=network.variables
        )
        self.state = parallel.replicate(start, devices)
        self.rows = parallel.own_rows(np.arange(total), devices).astype(np.int32)
        self.devices = devices

    def fed(self) -> tuple[np.ndarray, ...]:
        """Images, labels and indices of the local devices, gathered on the host."""
        return self.images[self.rows], self.labels[self.rows], self.rows

    def placed(self) -> Any:
        """The same on the devices, as the step takes them."""
        split = PartitionSpec(parallel.AXIS)
        mesh = Mesh(np.asarray(self.devices), (parallel.AXIS,))
        return jax.device_put(self.fed(), NamedSharding(mesh, split))

    def steps(self, feed: Callable[[], Any]) -> Callable[[], Any]:
        """`STEPS` steps, each on what `feed` gives."""

        def run() -> Any:
            seen = None
            for _ in range(STEPS):
                self.state, seen = self.step(self.state, *feed())
            return seen

        return run


def attack(
    name: str, size: int, devices: Sequence[parallel.Device]
) -> Callable[[], Any]:
    """PGD on `size` images a device, divided among them as `evaluate` does."""
    network = networks.build(name)
    x, y = networks.batch(network, size * len(devices))
    mesh = sharding.make_mesh(devices)
    inputs = (x, y, sample_keys(jax.random.key(0), len(y)))
    model = sharding.place(network.logits, mesh, sharding.SHARED)
    inputs = sharding.place(inputs, mesh, sharding.SPLIT)

    def pgd(logits_fn, x, y, keys):
        return attacks.pgd(logits_fn, x, y, key=keys, **ATTACK).x_adv

    specs = (sharding.SHARED, *3 * (sharding.SPLIT,))
    run = jax.jit(sharding.over_devices(pgd, mesh, specs))
    return lambda: run(model, *inputs)


# ------------------------------------------------- parts, each in processes of its own


def over_devices(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and of an attack for 1, 2, 4, … devices; where they are."""
    jax.config.update("jax_num_cpu_devices", args.devices)
    found, name = {}, args.models[0]
    for count in _doublings(min(args.devices, jax.local_device_count())):
        devices = jax.local_devices()[:count]
        training = Training(name, args.batch, devices)
        placed = training.placed()
        candidates = {
            "loop": training.steps(training.fed),
            "device": training.steps(lambda placed=placed: placed),
            "attack": attack(name, args.batch, devices),
        }
        found[count] = timing.compare(candidates, args.rounds)
    return {"where": timing.environment(), "found": found}


def one_process(args: argparse.Namespace) -> Any:
    """Seconds of a step of all processes together, and of an attack by each alone."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if args.of > 1:
        own = None if args.simulated else [args.rank]
        jax.distributed.initialize(
            f"localhost:{args.port}", args.of, args.rank, local_device_ids=own
        )
    devices = jax.devices()[: args.of]
    training = Training(args.models[0], args.batch, devices)
    candidates = {
        "loop": training.steps(training.fed),
        "attack": attack(args.models[0], args.batch, jax.local_devices()[:1]),
    }
    return timing.compare(candidates, args.rounds)


def memory(args: argparse.Namespace) -> list[list[Any]]:
    """Per network and batch size: bytes of a step on one device."""
    rows = []
    for name in args.models:
        for size in (args.batch, 2 * args.batch, 4 * args.batch):
            training = Training(name, size, jax.local_devices()[:1])
            inputs = (training.state, *training.placed())
            step = jax.jit(training.step, donate_argnums=0)
            compiled = step.lower(*inputs).compile()
            plan = compiled.memory_analysis()
            jax.block_until_ready(compiled(*inputs))
            counted = jax.local_devices()[0].memory_stats() or {}
            weights = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
            parts = ("argument_size_in_bytes", "temp_size_in_bytes")  # not everywhere
            sizes = [getattr(plan, part, None) for part in parts]
            rows.append([name, size, weights, *sizes, counted.get("peak_bytes_in_use")])
    return rows


_PARTS = {"devices": over_devices, "process": one_process, "memory": memory}


def _doublings(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


# ----------------------------------------------------------------------- the tables


def start(args: argparse.Namespace, part: str, **options: Any) -> subprocess.Popen:
    """Starts a part in a process of its own."""
    shared = {name: getattr(args, name) for name in ("batch", "rounds", "devices")}
    words = [f"--{name}={value}" for name, value in {**shared, **options}.items()]
    command = [sys.executable, "-m", "benchmarks.scaling", f"--part={part}", *words]
    return subprocess.Popen(
        [*command, "--models", *args.models], stdout=subprocess.PIPE, text=True
    )


def results(started: Sequence[subprocess.Popen]) -> list[Any]:
    """What parts that run at the same time print in their last lines."""
    try:
        printed = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise SystemExit("a part of the benchmark failed, see above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def spawned(args: argparse.Namespace, count: int, simulated: bool) -> dict[str, Any]:
    """Times of `count` processes that work at the same time: wall of the slowest."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"of": count, "port": port, "simulated": int(simulated)}
    started = [start(args, "process", rank=rank, **shared) for rank in range(count)]
    found = {}
    for name, times in _by_name(results(started)).items():
        first, best, median, cpu = zip(*times, strict=True)
        found[name] = [max(first), max(best), max(median), sum(cpu)]
    return found


def _by_name(found: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [times[name] for times in found] for name in found[0]}


def weak_scaling(
    unit: str, found: dict[int, dict[str, Any]], size: int, simulated: bool
) -> list[str]:
    """Rows of the table of weak scaling, over devices or over processes."""
    rows = []
    for what, name, steps in (("training step", "loop", STEPS), ("PGD", "attack", 1)):
        alone = timing.Timing(*found[1][name])
        for count, times in found.items():
            taken = timing.Timing(*times[name])
            hardware = 1 if simulated else count
            efficiency = count * alone.best / (taken.best * hardware)
            work = f"{taken.cpu / (count * alone.cpu):.2f}" if simulated else ""
            rows.append(
                f"| {what} | {count} {unit} | {1e3 * taken.best / steps:.1f} |"
                f" {1e3 * taken.median / steps:.1f} |"
                f" {count * size * steps / taken.best:.0f} |"
                f" {efficiency:.2f} | {work} |"
            )
    return rows


def host_gaps(found: dict[int, dict[str, Any]]) -> list[str]:
    """Rows of the table of the time that devices wait for the host."""
    rows = []
    for count, times in found.items():
        (loop, device), (loop_median, device_median) = (
            [1e3 * timing.Timing(*times[name])[index] / STEPS for name in _LOOPS]
            for index in (1, 2)
        )
        gap, of_medians = loop - device, loop_median - device_median
        rows.append(
            f"| {count} | {loop:.2f} | {device:.2f} | {gap:.2f} | {of_medians:.2f} |"
            f" {100 * gap / loop:.1f} |"
        )
    return rows


def memory_rows(found: list[list[Any]]) -> list[str]:
    """Rows of the table of memory, from bytes."""
    rows = []
    for name, size, *parts in found:
        state, arguments, temporary, peak = (
            "" if part is None else f"{part / _MIB:.1f}" for part in parts
        )
        each = "" if parts[2] is None else f"{parts[2] / size / _MIB:.3f}"
        rows.append(
            f"| {name} | {size} | {state} | {arguments} | {temporary} | {each} |"
            f" {peak} |"
        )
    return rows


def table(*columns: str) -> str:
    """The two first lines of a table."""
    return f"\n| {' | '.join(columns)} |\n" + len(columns) * "|---" + "|"


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    models = [name for name in networks.BUILDERS if name != "flax_cnn"]  # no training
    parser.add_argument("--models", nargs="+", default=["cnn"], choices=models)
    parser.add_argument("--batch", type=int, default=32, help="of one device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=8, help="the most")
    parser.add_argument("--processes", type=int, default=4, help="the most")
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    for name in ("rank", "of", "port", "simulated"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_PARTS[args.part](args)))
        return
    (first,) = results([start(args, "devices")])
    where, found = first["where"], {int(n): t for n, t in first["found"].items()}
    simulated = where.startswith("cpu")
    print(f"{args.models[0]}, batch {args.batch} a device, measured on {where}")
    work = ("CPU",) if simulated else ("",)
    print(table("what", "on", "ms", "(median)", "images/s", "efficiency", *work))
    size = args.batch
    print("\n".join(weak_scaling("devices", found, size, simulated)), flush=True)
    if not where.startswith("tpu"):  # one process drives all chips of a host
        most = args.processes if simulated else min(args.processes, max(found))
        by_process = {n: spawned(args, n, simulated) for n in _doublings(most)}
        print("\n".join(weak_scaling("processes", by_process, size, simulated)))
    print(
        table("devices", "loop ms", "device ms", "host gap", "(medians)", "% of loop")
    )
    print("\n".join(host_gaps(found)), flush=True)
    (rows,) = results([start(args, "memory")])
    columns = "state MiB", "arguments", "temporary", "÷ batch", "most in use"
    print(table("network", "batch", *columns))
    print("\n".join(memory_rows(rows)))


if __name__ == "__main__":
    main()
