"""Eight simulated devices, strict broadcasting, reproducible hypothesis."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, so no deadline per example is meaningful.
hypothesis.settings.register_profile(
    "robjax", deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("robjax")
