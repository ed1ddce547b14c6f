"""How is x_0 reached?  One loop from noise to tokens, and the samplers, guides and scorers in it.

The network is a function here: `denoise_fn(xt, t, free) -> logits`. Read `reverse` third.
"""
