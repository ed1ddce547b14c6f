"""How are the weights found?  Losses, optimisers, and two trainers that share one loop.

Read `train_diffusion` fourth.
"""
