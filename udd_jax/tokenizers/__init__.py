"""How do pixels and words become codes, and codes pixels and words again?

A tokenizer is a pair `encode(values) -> ids` and `decode(ids) -> values`, and the training-free
parts around it.
"""
