"""Captioned images, from wherever they lie to the token arrays that training reads.

    sources -> records -> (decode) -> image and text tokenizers -> tokens -> batches

A *source* is a plain sequence of `records.Record` with a `name`; nothing here imports a network
or jax: the tokenizers are passed in as functions.
"""
