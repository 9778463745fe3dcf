"""What `tools/bench` measures, one file per group of goals."""
