"""Record: what a run depends on besides its state, as every checkpoint tells it."""

from pathlib import Path
from typing import Any

from jaxkv.train.claim import as_json, compare
from jaxkv.train.config import Train
from jaxkv.train.data.files import check_unchanged, fingerprint


class Record:
    """Of a run; its data's files are looked at once.

    After some steps it is, as JSON has it:

        step, seed   what a run's random numbers come of
        config
        data         of each stage global_next_index, rows read, which is where its
                     iterator stands, and the fingerprint of its files
    """

    def __init__(self, config: Train) -> None:
        self._config = config
        sources = [stage.feed.source_of_rows() for _, stage in config.curriculum()]
        self._files = [{} if s is None else fingerprint(s) for s in sources]

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
        return about | {"data": data}

    def check(self, where: Path, saved: dict[str, Any]) -> None:
        """Checks that a checkpoint in `where` is this run's.

        Raises:
          ValueError: it is another run's, or data changed since.
        """
        compare(where, as_json(self._config), saved["config"])
        stages = [stage for _, stage in self._config.curriculum()]
        for stage, data in zip(stages, saved["data"], strict=False):
            source = stage.feed.source_of_rows()
            if source is not None:
                check_unchanged(source, data["files"])
