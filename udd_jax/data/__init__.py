"""How do captioned images become batches?  From files of any kind to the arrays of training.

    sources -> records -> (decode) -> image and text tokenizers -> token_cache -> batches

A *source* is a plain sequence of `records.Record` with a `name`. Nothing here imports a network or
JAX: the tokenizers are passed in as functions.
"""
