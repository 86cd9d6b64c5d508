"""Training: run configs, the loop, averaged weights, checkpoints. It knows no method by name."""
