"""Trials from a file of the user's own, in the schema of kvpress's datasets.

A line is a JSON object:

    context         compressed once for all lines that have the same
    question        asked of it
    answer_prefix   begins the answer; put after the question, may be empty
    answer          a string or a list of strings
    task            a name; scores are averaged by task
    max_new_tokens  optional, 50

The parts are joined by a line break where no white space stands between them. An answer
is graded as in RULER, upper and lower case alike: the share of the strings that it
contains, or for a task whose name begins with "qa" whether it contains any.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxkv.evaluate.trials import Trial

FIELDS = ("context", "question", "answer_prefix", "answer", "task")
MAX_NEW_TOKENS = 50


@dataclass(frozen=True)
class Line:
    """One checked line of a file: where it stands, and its object."""

    where: str
    number: int
    row: dict[str, Any]  # with `answer` as a tuple


def read_lines(file: str | os.PathLike) -> list[Line]:
    """The lines of a JSONL file.

    Raises ValueError, one sentence with file and line, for a line that is no such
    object.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it cannot be read ({error}).") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            found.append(Line(where, number, _row(line, where)))
    if not found:
        raise ValueError(f"{path}: it holds no line; give one question at least.")
    return found


def make_trials(
    lines: Sequence[Line], tokenizer: Tokenizer, longest: int
) -> tuple[Trial, ...]:
    """The trials of a file's lines, in its order.

    Raises ValueError, naming the line, where context, question and answer take more
    than `longest` tokens.
    """

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    contexts: dict[str, tuple[int, tuple[int, ...]]] = {}
    trials = []
    for line in lines:
        row, context = line.row, line.row["context"]
        if context not in contexts:
            contexts[context] = len(contexts), tuple(tokenizer.encode(context).ids)
        sample, context_ids = contexts[context]
        asked = _joined(row["question"], row["answer_prefix"])
        question_ids = ids(_joined(context, asked)[len(context) :])
        steps = row.get("max_new_tokens", MAX_NEW_TOKENS)
        _check_room(len(context_ids), len(question_ids), steps, longest, line.where)
        trials.append(
            Trial(
                task=row["task"],
                sample=sample,
                question=line.number,
                context=context,
                context_ids=context_ids,
                question_ids=question_ids,
                question_text=asked,
                references=row["answer"],
                answer_ids=ids(row["answer"][0]),
                steps=steps,
                grade=contains_any if row["task"].startswith("qa") else contains_all,
            )
        )
    return tuple(trials)


def contains_all(answer: str, references: tuple[str, ...]) -> float:
    """The share of `references` that `answer` contains."""
    return sum(_contains(answer, ref) for ref in references) / len(references)


def contains_any(answer: str, references: tuple[str, ...]) -> float:
    """1 if `answer` contains one of `references`, else 0."""
    return float(any(_contains(answer, reference) for reference in references))


def _contains(answer: str, reference: str) -> bool:
    return _plain(reference) in _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _row(line: str, where: str) -> dict[str, Any]:
    """The line's object, with `answer` as a tuple."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: it is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: it is not an object with {', '.join(FIELDS)}.")
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise ValueError(
            f"{where}: it has no {missing[0]!r} (fields: {', '.join(FIELDS)})."
        )
    answer = row["answer"]
    row["answer"] = tuple(answer) if isinstance(answer, list) else (answer,)
    texts = {field: row[field] for field in FIELDS if field != "answer"}
    texts |= {"answer": " ".join(map(str, row["answer"]))}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {field} is not a string.")
        if not text.strip() and field != "answer_prefix":
            raise ValueError(f"{where}: {field} is empty.")
    if not all(isinstance(a, str) and a.strip() for a in row["answer"]):
        raise ValueError(f"{where}: answer is not a string or a list of strings.")
    steps = row.get("max_new_tokens", MAX_NEW_TOKENS)
    if type(steps) is not int or steps < 1:
        raise ValueError(f"{where}: max_new_tokens={steps!r} is no count from 1 up.")
    return row


def _check_room(context: int, asked: int, steps: int, longest: int, where: str) -> None:
    if not asked:
        raise ValueError(f"{where}: the tokenizer makes no token of the question.")
    if context + asked + steps > longest:
        raise ValueError(
            f"{where}: context and question have {context + asked} tokens, and with an "
            f"answer of {steps} they pass the model's context of {longest}; shorten "
            "the context."
        )


def _joined(first: str, second: str) -> str:
    spaced = not second or first[-1:].isspace() or second[:1].isspace()
    return f"{first}{second}" if spaced else f"{first}\n{second}"
