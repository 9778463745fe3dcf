"""What tools/faults consists of: a training run, and the faults that happen to it."""
