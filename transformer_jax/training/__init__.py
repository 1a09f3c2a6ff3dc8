"""Training: the loop, one update, and the parameters that a run starts from.

It may import evaluation/, runs/ and all below; the program ``transformer_jax.train`` calls ``train``.
"""

from transformer_jax.training.loop import train
from transformer_jax.training.step import compile_train_step

__all__ = ["compile_train_step", "train"]
