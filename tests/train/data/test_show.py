"""Rows are shown as text, segments in colours and targets underlined."""

import io
import json

from rich.console import Console

from jaxkv.train.data import JsonlFiles, show
from jaxkv.train.data.show import COLOURS, row_text
from tests.train.data.reading import TOKENIZER, epoch


def _source(tmp_path):
    path = tmp_path / "mine.jsonl"
    pair = {"prompt": "recall the calm fox", "answer": "axe ."}
    lines = (pair, {"text": "the dark fog"})
    path.write_text("\n".join(map(json.dumps, lines)))
    return JsonlFiles((str(path),))


def test_rows_are_printed_as_text(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    show(_source(tmp_path), 2, length=16, tokenizer=TOKENIZER, console=console)
    said = console.file.getvalue()
    for number in (0, 1):
        assert f"row {number}: 2 segments, 11 of 16 tokens, 5 targets" in said
    assert said.count("<bos> recall the calm fox axe .\n<bos> the dark fog\n") == 2


def test_styles_tell_segments_and_targets(tmp_path):
    (row,) = epoch(_source(tmp_path), length=16)
    text = row_text(row, TOKENIZER)
    styled = {text.plain[s.start : s.end]: s.style for s in text.spans}
    assert styled["<bos> recall the calm fox"] == f"{COLOURS[0]} dim"
    assert styled["axe ."] == f"{COLOURS[0]} underline"
    assert styled["the dark fog"] == f"{COLOURS[1]} underline"
