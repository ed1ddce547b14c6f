"""How do captioned images become batches?  From wherever they lie to the arrays training reads.

    sources -> records -> (decode) -> image and text tokenizers -> token_cache -> batches

A *source* is a plain sequence of `records.Record` with a `name`. Nothing here imports a network or
JAX: the tokenizers are passed in as functions.
"""
