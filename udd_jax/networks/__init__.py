"""What predicts x_0?  The mutual-attention transformer, its parts, and networks that measure.

Read `transformer` second. Only files here and in `tokenizers` import `flax.linen`.
"""
