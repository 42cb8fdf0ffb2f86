"""The tests run on two virtual CPU devices, and compile quickly."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # they compile for longer than they run
