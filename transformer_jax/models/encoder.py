"""An encoder-only model with one of several heads, such as BERT or the Vision Transformer."""

import flax.linen as nn
from jaxtyping import Array, Int

from transformer_jax.layers.masks import Mask, Segments
from transformer_jax.models.config import TransformerConfig
from transformer_jax.models.heads import HEADS
from transformer_jax.models.stack import Stack
from transformer_jax.types import PyTree


class EncoderOnly(nn.Module):
    """Computes what a head returns for encoded inputs.

    Examples are BERT (Devlin et al. 2019) and the Vision Transformer (Dosovitskiy et al. 2021).
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.front_end = config.front_end.build(config.part("encoder"))
        self.encoder = Stack(config.encoder)
        self.head = HEADS[config.head].module(config)

    def __call__(
        self, inputs: Int[Array, "B L"] | None = None, *, train: bool = False, **arguments: Array | None
    ) -> PyTree:
        """Returns what the head returns, see ``models.heads.HEADS``.

        The arguments are those of the front end. ``Tokens`` has these:

        Args:
          inputs: tokens.
          inputs_segments: 0 on padding, else the number of the example in its row. None means that tokens
            with ``config.pad_id`` are padding and the rest is one example.
          inputs_positions: position of each token in its example; None means 0, 1, 2, …
          inputs_types: number of the text that each token belongs to; None means 0.
          train: whether dropout is on; it reads the random stream ``dropout``: ``rngs={"dropout": key}``.

        And ``Patches`` has this:

        Args:
          images: pixels, floats from -1 to 1 or uint8 from 0 to 255.

        Raises:
          ValueError: the arguments are not those of the front end, a sequence is longer than
            ``config.max_length``, or an image has another size.
        """
        given = self.config.front_end.checked({"inputs": inputs, **arguments})
        embedded = self.front_end.embed(given, train=train)
        segments = embedded.segments
        mask = Mask() if segments is None else Mask(Segments(segments, segments))
        x = self.encoder(embedded.x, mask=mask, train=train)
        return self.head(x, embedded, train=train)
