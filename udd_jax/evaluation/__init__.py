"""How good is it?  Samples from held-out conditions, what is measured of them, and the report.

The evaluation is handed a pipeline and imports none.
"""
