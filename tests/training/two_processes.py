"""One of two CPU processes of a training run: rank, port, folder for the results.

Both resume the finished run at the end: process 0 wrote it, both must read it.
"""

import importlib.util
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils


def main():
    rank, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    path = pathlib.Path(__file__).with_name("test_parallel.py")
    spec = importlib.util.spec_from_file_location("test_parallel", path)
    assert spec is not None and spec.loader is not None
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    test.two_process_run(folder / "run")
    multihost_utils.sync_global_devices("written")
    state = test.two_process_run(folder / "run", resume=True)
    np.savez(
        folder / f"weights{rank}.npz",
        **{f"leaf{i}": x for i, x in enumerate(jax.tree.leaves(state.variables))},
    )


if __name__ == "__main__":
    main()
