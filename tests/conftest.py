"""Eight simulated devices, strict broadcasting, reproducible hypothesis."""

import os

import hypothesis
import jax
import pytest

# Most of the time goes to compiling thousands of small programs, which these settings
# cut to a third. `XLA_FLAGS= make test` tests with XLA's defaults.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=2 "
        "--xla_cpu_parallel_codegen_split_count=1 "
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    )
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for workers and processes
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
    jax.config.update("jax_disable_most_optimizations", True)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, so no deadline per example is meaningful.
hypothesis.settings.register_profile(
    "robjax", deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("robjax")


@pytest.fixture
def usual_compilation():
    """For tests of the last bits: unoptimised programs round by shape and order."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def one_device(monkeypatch):
    """As on most machines: what eight devices share takes longer to compile."""
    one = jax.local_devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *args, **options: one)
