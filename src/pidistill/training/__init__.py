"""Training: run configs, the loop, averaged weights, checkpoints; independent of the method."""
