"""janus_jax: post-training (SFT, preferences, rewards) of Mistral-shaped models on sharded JAX meshes.

Legend of dimension letters, used in every annotation and docstring:

    B rows in a batch       L length of a row        S segments (examples) in a row
    D model width           F feed-forward width     V vocabulary
    N query heads           K key/value heads        G query heads per key/value head (N / K)
    H head dimension        M microbatches           E examples in a data set

Importing this package imports nothing else: no JAX, no TensorFlow.
"""

__version__ = "0.1.0"
