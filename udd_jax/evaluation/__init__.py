"""How good is it?  Samples from held-out conditions, measures of them, and the report.

The evaluation takes a pipeline as an argument; it does not import one.
"""
