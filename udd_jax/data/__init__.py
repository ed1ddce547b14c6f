"""Captioned images: sources, the token cache, batches."""
