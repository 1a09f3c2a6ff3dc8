"""An experiment compiled for accelerators that are not there: does it fit, and how fast is it?

It may import training/, evaluation/, runs/ and all below; the program ``transformer_jax.plan`` calls it.
"""
