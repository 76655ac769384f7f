"""RoRoPE and FreqFold: turns keys so that one key's worth of numbers needs RoPE.

TransMLA, arXiv 2502.07864. RoPE rotates pair p of every kv head by the same angle, so
what mixes the heads' pairs p alike in both numbers of a pair commutes with it:

    k'_pj = sum_k U_p[k, j] k_kp,    q'_npj = U_p[n // G, j] q_np,    q'_n k' = q_n k_n

U_p are the eigenvectors of the keys' second moments over the heads, by falling energy,
so that j = 0 holds the most, and only that is then rotated. FreqFold takes F adjacent
frequencies for one: U is over K F pairs and gathers more, and is exact for F = 1 alone.
"""

import numpy as np
from jaxtyping import Float


def turn(
    moments: Float[np.ndarray, "K P K P"], fold: int, collapse: int
) -> Float[np.ndarray, "K H W"]:
    """An orthogonal matrix [K H, W = K H] of all heads' numbers: k' = sum_k k_k U_k.

    moments: of pairs of unrotated keys, both numbers of a pair summed. fold: F, which
    divides P = H / 2. collapse: divides F; of each F frequencies the F / collapse
    strongest columns of F K are to be rotated, by every collapse-th frequency.

    Columns: first H / collapse numbers to be rotated, halves apart as RoPE has them,
    then the others.
    """
    K, P = moments.shape[:2]
    groups = P // fold
    by_group = moments.reshape(K, groups, fold, K, groups, fold)
    blocks = np.einsum("KgfMgh->gKfMh", by_group).reshape(groups, K * fold, K * fold)
    _, rising_gXj = np.linalg.eigh(blocks)
    turn_gKfj = rising_gXj[..., ::-1].reshape(groups, K, fold, K * fold)
    # Numbers of a head are (half, group, one of the fold), columns (half, group, j).
    halves, each = np.eye(2), np.eye(groups)
    whole = np.einsum("gKfj,hi,gl->Khgfilj", turn_gKfj, halves, each)
    rotated, still = np.split(whole, [fold // collapse], axis=-1)
    return np.concatenate(
        [rotated.reshape(K, 2 * P, -1), still.reshape(K, 2 * P, -1)], axis=-1
    )


def folds(pairs: int, collapse: int) -> list[int]:
    """The values of F to be tried: collapse, doubled as long as it divides the pairs.

    Example:
      >>> folds(32, 2)
      [2, 4, 8, 16, 32]
    """
    found = [collapse]
    while pairs % (2 * found[-1]) == 0:
        found.append(2 * found[-1])
    return found
