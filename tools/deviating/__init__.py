"""What `tools/deviations.py` measures."""
