"""What is the noise?  The unified transition matrix, its posterior, and the objective.

No network and no config: arrays in, arrays out. Read `transition` first.
"""
