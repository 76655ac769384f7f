"""Answers and measurements to the rows of a Table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkv.evaluate.entrants import Entrant
from jaxkv.evaluate.intervals import interval
from jaxkv.evaluate.measure import Setting
from jaxkv.evaluate.table import Answer, Row
from jaxkv.evaluate.tasks import score
from jaxkv.evaluate.trials import Batch, Trial, shortest


def answers_of(
    found: Setting, setting: str, trials: Sequence[Trial]
) -> dict[Entrant, list[Answer]]:
    """Every row's answers, in the order of the trials."""
    return {
        row: [
            Answer(
                method=row.name,
                keep=row.keep,
                question=setting,
                task=trial.task,
                sample=trial.sample,
                asked=trial.question_text,
                answer=own.answers[trial.key],
                references=trial.references,
                score=score(own.answers[trial.key], trial.references),
            )
            for trial in trials
        ]
        for row, own in found.measured.items()
    }


def table_rows(
    rows: Sequence[Entrant],
    found: Setting,
    setting: str,
    made: Sequence[Batch],
    said: dict[Entrant, list[Answer]],
) -> list[Row]:
    """One row an entrant; those that could not take part say why."""
    full = next((row for row in said if row.name == "full"), None)
    yardstick = None if full is None else _by_context(said[full])
    made_rows = []
    for row in rows:
        if row not in said:
            why = row.excuse(shortest(made))
            made_rows.append(Row(row.name, row.keep, setting, 0, note=why))
            continue
        made_rows.append(
            Row(
                method=row.name,
                keep=row.keep,
                question=setting,
                n=len(said[row]),
                **_scores(said[row], yardstick),
                **_costs(found, row, made),
            )
        )
    return made_rows


def _scores(said: Sequence[Answer], yardstick: np.ndarray | None) -> dict[str, Any]:
    scores = _by_context(said)
    names = dict.fromkeys(answer.task for answer in said)
    found = {
        "tasks": dict(zip(names, scores.mean(axis=1).tolist(), strict=True)),
        "score": float(scores.mean()),
        "ci95": interval(scores),
    }
    if yardstick is not None:
        found["difference"] = float((scores - yardstick).mean())
        found["difference_ci95"] = interval(scores - yardstick)
    return found


def _by_context(said: Sequence[Answer]) -> np.ndarray:
    """Mean scores [tasks, samples]; a context's questions stay together."""
    found: dict[str, dict[int, list[float]]] = {}
    for answer in said:
        found.setdefault(answer.task, {}).setdefault(answer.sample, []).append(
            answer.score
        )
    return np.array(
        [[np.mean(scores) for scores in task.values()] for task in found.values()]
    )


def _costs(found: Setting, row: Entrant, made: Sequence[Batch]) -> dict[str, Any]:
    own = found.measured[row]
    weights = [batch.real for batch in made]
    tokens = np.average(
        [b.prompts.lengths[: b.real].mean() for b in made], weights=weights
    )

    def mean(per_batch: Sequence[float]) -> float:
        # A single batch ran twice.
        return float(np.average(per_batch[: len(made)], weights=weights))

    return {
        "slots": mean(own.slots),
        "keep_held": mean(own.slots) / float(tokens),
        "cache_bytes": mean(own.cache_bytes),
        "headroom_bytes": mean(own.headroom_bytes),
        "full_cache_bytes": mean(found.full_bytes),
        "prefill_s": found.prefill_s,
        "decode_step_s": own.decode_step_s,
        "compile_s": found.prefill_compile_s + own.compile_s,
    }
