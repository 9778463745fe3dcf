"""What all tests share: one thread (small models, bit-for-bit comparisons), no deadlines."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

# no deadlines: a first call compiles and traces, and machines are shared
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
