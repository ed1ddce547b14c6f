"""Unified discrete diffusion for images and text, in JAX and Flax."""
