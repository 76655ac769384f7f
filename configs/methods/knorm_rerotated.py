"""knorm_rerotated: knorm, with the kept keys rotated to stand next to each other.

kvpress's KeyRerotation over its Knorm. Any row takes it: "snapkv(cache=rerotated)".
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.cache.rerotated import Rerotated
from jaxkv.method import Method
from jaxkv.score.key_norm import KeyNorm
from jaxkv.select.top_k import TopK

METHOD = Method(score=KeyNorm(), budget=Uniform(), select=TopK(), cache=Rerotated())
