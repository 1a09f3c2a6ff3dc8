"""The ``caption_questions`` TFDS data set; importing this makes its name known to TFDS."""

from experiments.caption_questions.caption_questions import CaptionQuestions

__all__ = ["CaptionQuestions"]
