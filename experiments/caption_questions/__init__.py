"""The ``caption_questions`` data set of ``experiments/qa_spans.py``: its TFDS builder and its templates."""

from experiments.caption_questions.caption_questions import CaptionQuestions

__all__ = ["CaptionQuestions"]
