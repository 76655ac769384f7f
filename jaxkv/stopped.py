"""Stopped: a run that ended before its end, told in one sentence."""


class Stopped(Exception):
    """The sentence, and the exit code of the command: 1 for a failure.

    143, that of a process that SIGTERM ended, says that all is saved.
    """

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.code = code
