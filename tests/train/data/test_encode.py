"""Texts keep their order and length through the tokenizer; small files share one."""

import pytest

from jaxkv.evaluate.language import NOUNS
from jaxkv.train.data import TextFiles, encode
from tests.train.data.reading import TOKENIZER, documents, epoch, opening


@pytest.mark.parametrize("limit", [("TEXTS", 3), ("CHARACTERS", 40), ("TEXTS", 10**6)])
def test_batches_keep_the_order(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(encode, *limit)
    path = tmp_path / "mine.txt"
    path.write_text("|".join(NOUNS[:20]))
    (file,) = encode.encoded([path], opening(), {}, TextFiles((), separator="|")._parts)
    ids = file.read(0, file.size).tolist()
    assert TOKENIZER.decode(ids, skip_special_tokens=False).split("<bos> ")[1:] == [
        f"{noun} " if noun != NOUNS[19] else noun for noun in NOUNS[:20]
    ]
    assert file.ends.tolist() == list(range(2, 41, 2)) and file.largest == max(ids)


def test_the_tokenizers_own_cut_is_not_taken(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("the calm fox sends axe .")
    settings = opening()
    settings.tokenizer.enable_truncation(4)
    try:
        rows = TextFiles((str(path),)).rows(settings)
    finally:
        settings.tokenizer.no_truncation()
    assert documents([rows[0]])[0][0] == "<bos> the calm fox sends axe ."


def test_small_files_share_an_entry_and_a_fault_costs_one(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(encode, "GROUP", 50)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("the calm fox sends axe .")  # 24 bytes
    source = TextFiles((str(tmp_path / "?.txt"),))
    (tmp_path / "4.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="4.txt: it is not UTF-8"):
        epoch(source)
    first = {folder.name for folder in kept.iterdir()}
    (tmp_path / "4.txt").write_text("the calm fox sends axe .")
    assert len(documents(epoch(source))) == 5
    assert len(first) == 1 and len({f.name for f in kept.iterdir()} - first) == 1
