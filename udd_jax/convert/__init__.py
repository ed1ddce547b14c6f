"""How do published weights get in and out?  PyTorch files as arrays, names, layouts.

PyTorch is not needed, and no code in a file is run.
"""
