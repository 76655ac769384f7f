"""jaxkv: compress the attention cache of language models in JAX.

    model, tokenizer = jaxkv.load("demo")
    method = jaxkv.method("snapkv", keep=0.12)
    cache = jaxkv.compress(model, token_ids, method)
    answer = jaxkv.generate(model, question_ids, cache=cache)
    table = jaxkv.compare("demo", methods=["full", "snapkv"])

Names are imported when first used, so that the command line starts fast.
"""

import importlib
import sys
from importlib.metadata import version as _version
from types import ModuleType
from typing import TYPE_CHECKING

from jaxkv.versions import check as _check_versions

if TYPE_CHECKING:
    from jaxkv.attend.all_pages import attend as attend
    from jaxkv.cache.cache import Cache as Cache
    from jaxkv.cache.load import load_cache as load_cache
    from jaxkv.evaluate.compare import compare as compare
    from jaxkv.generate import compress as compress
    from jaxkv.generate import generate as generate
    from jaxkv.generate import stream as stream
    from jaxkv.method import Method as Method
    from jaxkv.method import method as method
    from jaxkv.models.load import load as load
    from jaxkv.sample import Sample as Sample

__version__ = _version("jaxkv")

_HOME = {
    "Cache": "jaxkv.cache.cache",
    "Method": "jaxkv.method",
    "Sample": "jaxkv.sample",
    "attend": "jaxkv.attend.all_pages",
    "compare": "jaxkv.evaluate.compare",
    "compress": "jaxkv.generate",
    "generate": "jaxkv.generate",
    "load": "jaxkv.models.load",
    "load_cache": "jaxkv.cache.load",
    "method": "jaxkv.method",
    "stream": "jaxkv.generate",
}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604

_check_versions()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxkv' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """`jaxkv.compress` is a function, though a module has that name too.

    Importing jaxkv/compress.py would bind the module here, over the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
