"""What the installed JAX has of Pallas."""

import jax

# Before 0.11 Mosaic GPU lacks what the kernels need; a GPU then goes through XLA.
MOSAIC_GPU = jax.__version_info__ >= (0, 11)
