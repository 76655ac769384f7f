"""Training data: sources as data, rows packed from them, the same for any processes.

    source = Mixture((TextFiles(("books/*.txt",)), Tasks()), weights=(3, 1))
    steps = batches(source, rows=8, length=2048, tokenizer=tokenizer)
    batch = next(steps)

A source is opened to an endless sequence of rows, each reached by its number: files are
tokenized once (`store`), their documents are planned into rows by length (`packing`),
and grain shuffles, repeats, mixes, shares among processes, reads ahead and resumes.
"""

from jaxkv.train.data.batches import batches as batches
from jaxkv.train.data.files import check_unchanged as check_unchanged
from jaxkv.train.data.files import fingerprint as fingerprint
from jaxkv.train.data.jsonl_files import JsonlFiles as JsonlFiles
from jaxkv.train.data.mixture import Mixture as Mixture
from jaxkv.train.data.show import show as show
from jaxkv.train.data.source import Source as Source
from jaxkv.train.data.tasks import Tasks as Tasks
from jaxkv.train.data.text_files import TextFiles as TextFiles
from jaxkv.train.data.token_files import TokenFiles as TokenFiles
