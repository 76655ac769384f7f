"""Documents join to one row, and seeds part."""

import numpy as np

from jaxkv.train.data.source import join_segments, sub_seed


def test_documents_join_to_a_row():
    row = join_segments([(np.array([5, 6, 7]), 2), (np.array([8, 9]), 0)], 7)
    assert {name: values.tolist() for name, values in row.items()} == {
        "tokens": [5, 6, 7, 8, 9, 0, 0],
        "segment": [1, 1, 1, 2, 2, 0, 0],
        "position": [0, 1, 2, 0, 1, 0, 0],
        "weight": [0, 0, 1, 0, 1, 0, 0],
    }


def test_parts_of_a_seed_differ():
    parts = [(), (0,), (1,), (2, 0), (2, 1)]
    seeds = {sub_seed(seed, *part) for seed in range(20) for part in parts[1:]}
    assert len(seeds) == 80 and max(seeds) < 2**32
