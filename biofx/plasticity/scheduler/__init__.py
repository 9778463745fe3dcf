"""The scheduler: what acts at which point of a training step."""
