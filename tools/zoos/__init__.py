"""What tools/zoo transforms: one file per library, each with its `MODELS`."""
