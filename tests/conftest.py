"""Settings of all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first
settings.register_profile("tests", deadline=None)  # machines are noisy; time is measured in benchmarks
settings.load_profile("tests")
