"""column_scores: how much attention given queries pay to each key, over the queries."""

from pallas_kernels.column_scores.op import column_scores

__all__ = ["column_scores"]
