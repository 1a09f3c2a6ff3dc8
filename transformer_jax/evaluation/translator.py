"""Makes the text generator that translates with the settings of a run."""

import dataclasses

from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer
from transformer_jax.inference.generation import TextGenerator
from transformer_jax.models import TransformerConfig
from transformer_jax.runs.experiment import EvaluateConfig


def translator(
    config: TransformerConfig,
    tokenizer: Tokenizer,
    settings: EvaluateConfig,
    mesh: Mesh | None = None,
    cut_to: int | None = None,
) -> TextGenerator:
    """Returns a generator whose outputs are translations of plain texts; that of a blank text is empty.

    Args:
      config: config of an encoder-decoder model.
      tokenizer: its tokenizer.
      settings: the decoding settings, by how many tokens an output may exceed its source, and the batch size.
      mesh: the devices to compute on, with rows split over its data axes; by default those of the parameters.
      cut_to: maximum number of tokens of a source, special tokens included. A longer source is truncated. By
        default a source that the model does not take is an error.

    Raises:
      ConfigError: the model has no encoder or no decoder.
    """
    if config.is_encoder_only or config.is_decoder_only:
        raise ConfigError(
            "translation needs an encoder-decoder model, but this model has no "
            f"{'decoder' if config.is_encoder_only else 'encoder'}; use transformer_jax.generate, classify "
            "or embed instead"
        )
    decoding = settings.decoding
    if decoding.temperature > 0:  # a run that samples keeps the beam size of its searches
        decoding = dataclasses.replace(decoding, beam_size=1)
    return TextGenerator(
        config,
        tokenizer,
        decoding,
        max_new_tokens=None,
        extra_length=settings.extra_length,
        batch_size=settings.batch_size,
        parse_special=False,
        keep_blank=True,
        cut_to=cut_to,
        mesh=mesh,
    )
