"""What the tests of sources share: a tokenizer, and a source's first rows."""

from jaxkv.train.data.batches import batches
from jaxkv.train.data.source import Opening
from jaxkv.train.tokenizer import word_tokenizer

TOKENIZER = word_tokenizer()
BOS = "<bos>"


def opening(length=32, **changed):
    return Opening(
        **{
            "tokenizer": TOKENIZER,
            "vocabulary": TOKENIZER.get_vocab_size(),
            "length": length,
            "seed": 0,
            **changed,
        }
    )


def take(source, count=1, **changed):
    """`count` batches of one iterator."""
    options = {"rows": 1, "length": 32, "tokenizer": TOKENIZER} | changed
    steps = batches(source, **options)
    try:
        return [next(steps) for _ in range(count)]
    finally:
        steps.close()


def documents(rows):
    """(text, text of what weighs) of each segment of some rows, sorted."""
    found = []
    for row in rows:
        for segment in range(1, int(row["segment"].max()) + 1):
            here = row["segment"] == segment
            weighs = here & (row["weight"] > 0)
            found.append(tuple(_text(row["tokens"][at]) for at in (here, weighs)))
    return sorted(found)


def epoch(source, **changed):
    """The rows of a source's first epoch."""
    rows = source.rows(opening(**changed))
    size = len(rows.parents[0])
    return [rows[i] for i in range(size)]


def _text(ids):
    return TOKENIZER.decode(ids.tolist(), skip_special_tokens=False)
