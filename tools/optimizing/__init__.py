"""What tools/optimizers consists of: the optimizers, what is measured, the page."""
