"""Training: documents drawn on the device, the loop, its configs and checkpoints."""
