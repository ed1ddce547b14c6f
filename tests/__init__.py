"""Claims about udd_jax; the folders mirror its packages."""
