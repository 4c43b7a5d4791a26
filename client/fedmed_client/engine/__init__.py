"""How a site's training uses its machine: memory, precision, compiled kernels, several GPUs."""
