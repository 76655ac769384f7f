"""Rows of tokens to calibrate with: our own tasks, or a text."""

from tokenizers import Tokenizer

from jaxkv.evaluate.tasks import TASKS
from jaxkv.evaluate.trials import draw

SEQUENCES = 20
LONGEST = 2048  # tokens of each


def task_tokens(
    tokenizer: Tokenizer, longest: int, seed: int = 0, count: int = SEQUENCES
) -> list[tuple[int, ...]]:
    """Sequences of up to 2048 tokens (or `longest`): our tasks in turn, asked."""
    tasks = list(TASKS.values())
    each = -(-count // len(tasks))
    trials = draw(tokenizer, tasks, min(LONGEST, longest), each, seed)
    in_turn = sorted(trials, key=lambda trial: trial.sample)
    return [trial.prompt_ids for trial in in_turn if trial.question == 0][:count]


def text_tokens(
    tokenizer: Tokenizer, text: str, longest: int, count: int = SEQUENCES
) -> list[list[int]]:
    """The first runs of up to 2048 tokens (or `longest`) of a text.

    Raises:
      ValueError: the text has no tokens.
    """
    ids = tokenizer.encode(text).ids
    size = min(LONGEST, longest)
    runs = [ids[start : start + size] for start in range(0, len(ids), size)]
    if not text.strip() or not runs:
        raise ValueError("The text is empty; give one with words in it.")
    return runs[:count]
