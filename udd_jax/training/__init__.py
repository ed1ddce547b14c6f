"""How are the weights found?  Losses, optimisers, and two straight trainers on one loop.

Read `train_diffusion` fourth.
"""
