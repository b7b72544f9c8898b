"""Makes fastNLP's Trainers quick to build, which tests do thousands of times. Nothing that they compute changes."""

import functools
import inspect
import logging
import sys

import torch
from fastNLP import logger


class Plain(logging.StreamHandler):
    """Writes lines as they are to what stdout is at the time. Setting them in columns took a fifth of a training."""

    @property
    def stream(self):
        return sys.stdout

    @stream.setter
    def stream(self, stream):
        pass


logger.handlers = [Plain() if type(each).__name__ == "RichHandler" else each for each in logger.handlers]


# Each Trainer compares the source of every hook of every callback with that of fastNLP's: half of the time of a short
# training, in which no source changes.
read_source = inspect.getsource


@functools.cache
def source_of(file, code):
    return read_source(code)


def remembered_source(thing):
    code = getattr(thing, "__code__", None)  # which methods bound to other objects share
    if code is None or hasattr(thing, "__wrapped__"):
        return read_source(thing)
    return source_of(code.co_filename, code)


inspect.getsource = remembered_source


# torch keeps each seed for devices that may come to be used, with the stack from which it was set, which takes longer
# than to set it.
if not torch.cuda.is_available():
    for device in ("cuda", "xpu", "mtia"):
        if hasattr(getattr(torch, device, None), "manual_seed_all"):
            getattr(torch, device).manual_seed_all = lambda seed: None
