"""Suite: methods and tasks that are compared when nothing is named, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Names of rows of configs/methods and of tasks."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
