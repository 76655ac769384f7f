"""Record: what a run depends on besides its state, as every checkpoint tells it."""

from pathlib import Path
from typing import Any

from jaxkv.models.hash import hash_parameters
from jaxkv.train.claim import as_json, compare
from jaxkv.train.config import Train
from jaxkv.train.data.files import check_unchanged, fingerprint
from jaxkv.train.parts import Fixed, Parts


class Record:
    """Of a run; its data's files are looked at once.

    After some steps it is, as JSON has it:

        step, seed   what a run's random numbers come of
        config
        models       hashes of the model and the teacher that were read, of what of
                     them no step changes
        data         of each stage global_next_index, rows read, which is where its
                     iterator stands, and the fingerprint of its files
    """

    def __init__(self, config: Train) -> None:
        self._config = config
        self._models: dict[str, str] = {}
        sources = [stage.feed.source_of_rows() for _, stage in config.curriculum()]
        self._files = [{} if s is None else fingerprint(s) for s in sources]

    def note(self, parts: Parts, fixed: Fixed) -> None:
        """Notes what the run reads beside its data; about a second a GB."""
        if isinstance(self._config.model, str):
            found = hash_parameters(parts.model, fixed["frozen"])
            self._models["model"] = found
        if parts.teacher_model is not None:
            found = hash_parameters(parts.teacher_model, fixed["teacher"])
            self._models["teacher"] = found

    def after(self, done: int) -> dict[str, Any]:
        """After `done` steps."""
        config = self._config
        data = []
        stages = zip(config.curriculum(), self._files, strict=True)
        for (first, stage), files in stages:
            behind = min(max(done - first, 0), stage.steps)
            rows = sum(rows for rows, _ in stage.feed.shapes_of_step)
            data.append({"global_next_index": behind * rows, "files": files})
        about = {"step": done, "seed": config.seed, "config": as_json(config)}
        return about | {"models": self._models, "data": data}

    def check(self, where: Path, saved: dict[str, Any]) -> None:
        """Checks that a checkpoint in `where` is this run's.

        Raises:
          ValueError: it is another run's, or a model or data changed since.
        """
        compare(where, as_json(self._config), saved["config"])
        for which, theirs in saved.get("models", {}).items():
            if self._models[which] != theirs:
                named = getattr(self._config, which)
                name = self._config.model if named == "itself" else named
                raise ValueError(
                    f"The {which} {name} changed since the checkpoint in {where} was "
                    "saved; put it back as it was, or begin a new run in another "
                    "folder."
                )
        stages = [stage for _, stage in self._config.curriculum()]
        for stage, data in zip(stages, saved["data"], strict=False):
            source = stage.feed.source_of_rows()
            if source is not None:
                check_unchanged(source, data["files"])
