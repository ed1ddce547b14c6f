"""How is x_0 reached?  One loop from noise to tokens, and the samplers, guides and scorers in it.

Knows the network as a function, `denoise_fn(xt, t, free) -> logits`. Read `reverse` third.
"""
