"""Orthogonal matrices by free numbers: the Cayley form, which training may move in.

MatryoshkaKV, arXiv 2410.14731. For any square X, with A = X - X^T,

    Q = (I - A / 2)^-1 (I + A / 2)           orthogonal, and no eigenvalue is -1
    A = 2 (Q - I) (Q + I)^-1,    X = A below its diagonal

Of a basis only the directions of columns matter and not their signs: `proper` turns
signs so that the form exists, whatever the matrix's determinant.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cayley(x: Float[Array, "*A H H"]) -> Float[Array, "*A H H"]:
    """The orthogonal matrices of free ones, computed in fp32, in x's dtype."""
    half = (x - x.swapaxes(-1, -2)).astype(jnp.float32) / 2
    one = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=jnp.float32), half.shape)
    return jnp.linalg.solve(one - half, one + half).astype(x.dtype)


def inverse_cayley(q: Float[np.ndarray, "*A H H"]) -> Float[np.ndarray, "*A H H"]:
    """Matrices below the diagonal whose `cayley` is q, computed in fp64.

    Raises:
      ValueError: q is not orthogonal, or has an eigenvalue of -1.
    """
    q = np.asarray(q, np.float64)
    one = np.broadcast_to(np.eye(q.shape[-1]), q.shape)
    if not np.allclose(q @ q.swapaxes(-1, -2), one, atol=1e-3):
        raise ValueError("The matrix is not orthogonal, so that it has no Cayley form.")
    if (np.linalg.svd(q + one, compute_uv=False) < 1e-6).any():
        raise ValueError(
            "The matrix has an eigenvalue of -1, and then no Cayley form; turn the "
            "signs of its columns by `proper`."
        )
    # Both factors are functions of q, and so commute.
    skew = 2 * np.linalg.solve(q + one, q - one)
    return np.tril(skew, -1)


def proper(q: Float[np.ndarray, "*A H H"]) -> Float[np.ndarray, "*A H H"]:
    """Orthogonal matrices with columns' signs turned so that the Cayley form exists.

    Q + D is eliminated row by row, D = diag(+-1) taking each pivot's own sign, so that
    none is below 1. Then Q D + I = (Q + D) D has an inverse, and Q D no eigenvalue -1.
    """
    left = np.array(q, np.float64)
    signs = np.ones(left.shape[:-1])
    for i in range(left.shape[-1]):
        signs[..., i] = np.where(left[..., i, i] < 0, -1.0, 1.0)
        pivot = left[..., i, i] + signs[..., i]
        row = left[..., i, i + 1 :] / pivot[..., None]
        left[..., i + 1 :, i + 1 :] -= left[..., i + 1 :, i, None] * row[..., None, :]
    return q * signs[..., None, :]
