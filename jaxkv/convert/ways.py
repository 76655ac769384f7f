"""The ways that a model is converted, by name."""

from collections.abc import Mapping

from jaxkv.convert.base import Way
from jaxkv.convert.eigen import EigenAttention
from jaxkv.convert.matryoshka import MatryoshkaKV
from jaxkv.convert.pooling import GroupedHeads, OneHead
from jaxkv.convert.trans_mla import TransMLA
from jaxkv.convert.x_ecomla import XEcoMLA

WAYS: Mapping[str, type[Way]] = {
    "mla": XEcoMLA,
    "transmla": TransMLA,
    "gqa": GroupedHeads,
    "mqa": OneHead,
    "matryoshka": MatryoshkaKV,
    "eigen": EigenAttention,
}
