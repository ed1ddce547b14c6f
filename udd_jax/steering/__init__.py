"""How is a result pushed, chosen or changed?  Prompts with weights, candidates, edits.

The functions take a pipeline as their first argument; `pipeline.Pipeline` has them as methods.
"""
