"""The letters of every shape, used in names and in jaxtyping annotations.

They are the letters that `jax.nn.dot_product_attention` documents, and a few more:

    B  batch (sequences)            N  query heads
    T  query positions              K  kv heads (rows of the cache)
    S  slots before compression     G  query heads per kv head, N // K
    C  slots kept (static)          H  head dimension
    L  layers                       D  model width
    F  feed-forward width           V  vocabulary
    J  head groups (1 on one chip, the tensor axis's size when heads are sharded)
    P  slots in a page              M  pages in a head's table
    R  latent rank                  W  window: the last queries a score looks at
    E  numbers of a row's value     U  numbers that a head gives

E and U are H too, but where attention is latent.

Inside functions an array's name ends in its shape, `k_BSKH`; scalars and pytrees carry
none.
"""
