"""The ``caption_questions`` TFDS data set; importing this makes its name known to TFDS."""

from transformer_jax.data.datasets.caption_questions.caption_questions import CaptionQuestions

__all__ = ["CaptionQuestions"]
