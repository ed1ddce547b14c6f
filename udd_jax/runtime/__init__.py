"""What does any long computation need?  Files, checkpoints, meshes, logs, stopping.

Knows nothing of diffusion and imports no other package.
"""
