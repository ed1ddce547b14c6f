"""What predicts x_0?  The mutual-attention transformer, its parts, and networks that measure.

Read `transformer` second. The only files that import `flax.linen` are here and in `tokenizers`.
"""
