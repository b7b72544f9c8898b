"""Models and data of the studies."""

from studies.tasks.base import Task, TimedTask
from studies.tasks.chinese import Entities, Reviews
from studies.tasks.defaults import Defaults
from studies.tasks.encoder import Encoder

TASKS: dict[str, type[Task]] = {"encoder": Encoder, "reviews": Reviews, "ner": Entities, "defaults": Defaults}

__all__ = ["TASKS", "Task", "TimedTask"]
