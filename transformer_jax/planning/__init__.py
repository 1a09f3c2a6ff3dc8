"""Compiles experiments for accelerators that are not present, and predicts their memory use and speed.

It may import training/, evaluation/, runs/ and all below; the program ``transformer_jax.plan`` calls it.
"""
