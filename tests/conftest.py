"""Settings of all tests."""

import gc

import pytest
import quick  # noqa: F401 - which is all that it takes
import torch
from fastNLP import logger
from hypothesis import settings

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first
settings.register_profile("tests", deadline=None)  # machines are noisy; time is measured in benchmarks
settings.load_profile("tests")


@pytest.fixture
def said(caplog):
    """What fastNLP's logger is given, whatever the width of the screen."""
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def young_heap():
    """Let the garbage collector see what is made from here on alone: all modules together take it seconds."""
    gc.freeze()
    yield
    gc.unfreeze()
