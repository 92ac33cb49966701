"""Timing that survives a shared machine: candidates take turns, ratios count.

Each candidate is compiled and warmed up first (its first call is reported apart), then
all run once per round, so that a slow minute of the machine slows all of them. The
minimum and the median over rounds are reported; absolute times depend on the machine,
ratios within one run hardly do.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds: of the first call (compilation included), best and median after it.

    `cpu` is the least time that all threads of the process together took.
    """

    first: float
    best: float
    median: float
    cpu: float


def _seconds(candidate: Callable[[], Any]) -> tuple[float, float]:
    start, worked = time.perf_counter(), time.process_time()
    jax.block_until_ready(candidate())
    return time.perf_counter() - start, time.process_time() - worked


def compare(
    candidates: dict[str, Callable[[], Any]], rounds: int = 7
) -> dict[str, Timing]:
    """Times every candidate in turn, `rounds` times after one first call each."""
    first = {name: _seconds(run)[0] for name, run in candidates.items()}
    for run in candidates.values():
        jax.block_until_ready(run())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(_seconds(run))
    found = {}
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=True)
        found[name] = Timing(first[name], min(wall), statistics.median(wall), min(cpu))
    return found


def environment() -> str:
    """One line that says what the numbers were measured on."""
    device = jax.devices()[0]
    versions = [
        f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax")
    ]
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return f"{device.platform} {device.device_kind} ({cores}); " + ", ".join(versions)
