"""The needle tasks, by name."""

from jaxkv.evaluate.tasks.base import Question as Question
from jaxkv.evaluate.tasks.base import Sample as Sample
from jaxkv.evaluate.tasks.base import Task as Task
from jaxkv.evaluate.tasks.base import score as score
from jaxkv.evaluate.tasks.multi_key import MultiKey as MultiKey
from jaxkv.evaluate.tasks.multi_query import MultiQuery as MultiQuery
from jaxkv.evaluate.tasks.multi_value import MultiValue as MultiValue
from jaxkv.evaluate.tasks.single_needle import SingleNeedle as SingleNeedle

TASKS: dict[str, Task] = {
    task.name: task for task in (SingleNeedle(), MultiKey(), MultiValue(), MultiQuery())
}

IN_MEAN: tuple[str, ...] = tuple(TASKS)
"""The tasks that count in a method's mean score."""


def task(name: str) -> Task:
    """The task called `name`.

    Raises:
      ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"No task named {name!r}; known: {', '.join(TASKS)}.")
    return TASKS[name]
