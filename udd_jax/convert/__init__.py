"""How do published weights get in and out?  PyTorch files as arrays, names, layouts.

PyTorch is not needed, and nothing in a file is run.
"""
