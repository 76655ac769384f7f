"""A reader of contexts: answers any question of the tasks from the text alone."""

from collections import Counter

from jaxkv.evaluate.language import QUOTED


def solve(context: str, question: str) -> str:
    """The answer to `question`, by nothing but the words of `context`."""
    command, *rest = question.split()
    said = _values(context)
    if command in ("common", "frequent"):
        return _most(context, 4 if command == "common" else 3)
    if rest[0] == "both":
        first, second = said[" ".join(rest[1:])]
        return f"{first} and {second} ."
    if "and" in rest:
        at = rest.index("and")
        later, first = " ".join(rest[:at]), " ".join(rest[at + 1 :])
        return f"{_only(said[first])} . {later} {_only(said[later])} ."
    if rest[0] == "from":
        words, opening = context.split(), rest[1:]
        places = range(len(words) - 3)
        (at,) = (i for i in places if words[i : i + 4] == opening)
        return " ".join(words[at + 4 : at + 4 + QUOTED])
    value = _only(said[" ".join(rest)])
    if command == "follow":
        (opening,) = (o for o in said if o.startswith(f"the {value} "))
        return f"{value} . {opening} {_only(said[opening])} ."
    if command == "trace":
        steps = [value]
        while f"let {value} be" in said:
            opening = f"let {value} be"
            value = _only(said[opening])
            steps.append(f"{opening} {value}")
        return f"{' . '.join(steps)} ."
    assert command == "recall"
    return f"{value} ."


def sentences(context: str) -> list[list[str]]:
    """The words of each sentence, without its stop."""
    return [text.split() for text in context.removesuffix(" .").split(" . ")]


def is_stock(sentence: list[str]) -> bool:
    """Is it filler?"""
    return sentence[0] not in ("the", "let", "note")


def _values(context: str) -> dict[str, list[str]]:
    """The different values of each opening of four words, in order of appearance."""
    said: dict[str, list[str]] = {}
    for words in sentences(context):
        if words[0] in ("the", "let"):
            values = said.setdefault(" ".join(words[:4]), [])
            value = " ".join(words[4:])
            if value not in values:
                values.append(value)
    return said


def _only(values: list[str]) -> str:
    (value,) = values
    return value


def _most(context: str, count: int) -> str:
    lines = [words[1:] for words in sentences(context) if words[0] == "note"]
    counts = Counter(noun for line in lines for noun in line)
    (*most, (_, next_most)) = counts.most_common(count + 1)
    assert most[-1][1] > next_most, "a tie"
    return f"{' '.join(noun for noun, _ in most)} ."
