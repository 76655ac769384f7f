"""Plan: what is asked at one length of context, and the sizes all programs share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from jaxkv.configs.evals.core import SUITE
from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.measure import repeated
from jaxkv.evaluate.perplexity import Texts, draw_texts
from jaxkv.evaluate.tasks import IN_MEAN, TASKS, Task, task
from jaxkv.evaluate.trials import Batch, Trial, batches, draw, shortest
from jaxkv.models.config import DecoderConfig
from jaxkv.prompts import bucket

SETTINGS = ("aware", "agnostic")
SMALLEST_HEADROOM = 64


@dataclass(frozen=True)
class Plan:
    """Trials in batches, by setting, and held-out texts where they are read."""

    context: int  # tokens of the longest prompt, or as many as were asked for
    trials: tuple[Trial, ...]
    settings: dict[str, tuple[Batch, ...]]
    in_mean: frozenset[str]  # tasks that count in the mean score
    size: int  # prompts a batch at most
    headroom: int  # tokens of question and answer, as a bucket
    texts: tuple[Texts, ...] = ()

    def fit(self, rows: Sequence[Entrant], setting: str) -> list[Entrant]:
        """The rows that can reach their keep on every prompt."""
        length = shortest(self.settings[setting])
        return [row for row in rows if not row.excuse(length)]

    def readers(self, rows: Sequence[Entrant]) -> list[Entrant]:
        """The rows that can reach their keep on every held-out text."""
        lengths = [int(batch.starts.lengths.min()) for batch in self.texts]
        return [row for row in rows if lengths and not row.excuse(min(lengths))]

    def ticks(self, rows: Sequence[Entrant]) -> int:
        """Steps that a progress bar counts."""
        answers = sum(
            len(repeated(made)) * (len(self.fit(rows, setting)) + 1)
            for setting, made in self.settings.items()
            if self.fit(rows, setting)
        )
        readers = self.readers(rows)
        return answers + (len(self.texts) * (len(readers) + 1) if readers else 0)


def plan_tasks(
    config: DecoderConfig,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    context: int,
    samples: int,
    batch: int,
    seed: int,
    question: str,
    perplexity: bool,
    places: int = 1,
) -> Plan:
    """Samples of tasks, in batches that are filled up to a multiple of `places`.

    Raises ValueError where they pass the model's context.
    """
    longest = config.max_position
    trials = draw(tokenizer, tasks, min(context, longest), samples, seed)
    steps = max(trial.steps for trial in trials)
    if context + steps > longest:
        raise ValueError(
            f"context={context} and answers of up to {steps} tokens pass the model's "
            f"context of {longest}; give {max(longest - steps, 0)} at most."
        )
    size = min(batch, len(tasks) * samples)
    headroom = _headroom(trials)
    names = frozenset(task.name for task in tasks)
    texts: tuple[Texts, ...] = ()
    if perplexity and question != "aware":
        texts = draw_texts(
            tokenizer, context, samples, size, seed, headroom, config.vocabulary
        )
    return Plan(
        context=context,
        trials=trials,
        settings=_settings(config, trials, size, question, places),
        in_mean=names & frozenset(IN_MEAN) or names,
        size=size,
        headroom=headroom,
        texts=texts,
    )


def plan_trials(
    config: DecoderConfig,
    trials: tuple[Trial, ...],
    batch: int,
    question: str,
    places: int = 1,
) -> Plan:
    """Trials that are there already; all tasks count."""
    size = min(batch, len({trial.context_ids for trial in trials}))
    return Plan(
        context=max(len(trial.prompt_ids) for trial in trials),
        trials=trials,
        settings=_settings(config, trials, size, question, places),
        in_mean=frozenset(trial.task for trial in trials),
        size=size,
        headroom=_headroom(trials),
    )


def chosen(names: Iterable[str] | None) -> list[Task]:
    """The tasks of these names, once each; some names stand for several.

    They are "core" (None too), "all", "sparse" and "dense".

    Raises ValueError for an unknown name, or none at all.
    """
    groups = {
        "core": list(SUITE.tasks),
        "all": list(TASKS),
        "sparse": [name for name in TASKS if not is_dense(name)],
        "dense": [name for name in TASKS if is_dense(name)],
    }
    found: list[str] = []
    for name in ["core"] if names is None else names:
        found += groups.get(name, [name])
    if not found:
        raise ValueError("There is no task to compare on; name one at least.")
    return [task(name) for name in dict.fromkeys(found)]


def is_dense(task_name: str) -> bool:
    """Whether the answers of a task hang on much of the context, by its name."""
    return task_name.endswith("_dense")


def _settings(
    config: DecoderConfig,
    trials: Sequence[Trial],
    size: int,
    question: str,
    places: int,
) -> dict[str, tuple[Batch, ...]]:
    asked = SETTINGS if question == "both" else (question,)
    longest, vocabulary = config.max_position, config.vocabulary
    return {s: batches(trials, s, size, vocabulary, longest, places) for s in asked}


def _headroom(trials: Sequence[Trial]) -> int:
    most = max(len(trial.question_ids) + trial.steps for trial in trials)
    return bucket(most, SMALLEST_HEADROOM)
