"""How do pixels and words become codes, and codes pixels and words again?

A tokenizer is a pair `encode(values) -> ids` and `decode(ids) -> values`. The package has their
networks, codebooks and vocabularies; the training of the image tokenizer is in `training`.
"""
