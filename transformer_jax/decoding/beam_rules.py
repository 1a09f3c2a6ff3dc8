"""What papers and libraries do otherwise in beam search: how lengths are weighed, and when it stops."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BeamRule:
    """How beam search ranks outputs of several lengths, when it stops, and what the limit makes of the rest.

    Attributes:
      weighing: what log P is divided by for a score, p being the length penalty: "wu" for
        ``((5 + length) / 6) ** p`` (Wu et al. 2016, equation 14, without coverage), "power" for
        ``length ** p``. A length is in tokens, with eos and without prompt or start token.
      early_stopping: when a text is done. True: as soon as as many hypotheses ended as there are beams.
        False: when that is so and the most probable live one, ended as it stands, would not score above the
        worst of them. "never": the same, but for a positive penalty with the score that it would have if it
        reached the limit at no loss, so that nothing better is to come.
      unfinished_compete: at the limit what did not end is ranked among what ended, by score; else after it.
    """

    weighing: str = "wu"
    early_stopping: bool | str = True
    unfinished_compete: bool = False

    def __post_init__(self) -> None:
        if self.weighing not in ("wu", "power"):
            raise ValueError(f"weighing={self.weighing!r} must be 'wu' or 'power'")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r} must be True, False or 'never'")

    def score(self, log_probs: jax.Array, length: jax.Array, length_penalty: float) -> jax.Array:
        """The scores of hypotheses of ``length`` tokens."""
        tokens = length.astype(jnp.float32)
        if self.weighing == "power":
            return log_probs / tokens**length_penalty
        return log_probs / ((5.0 + tokens) / 6.0) ** length_penalty

    def is_settled(
        self, live: jax.Array, ended: jax.Array, length: jax.Array, limit: jax.Array, length_penalty: float
    ) -> jax.Array | bool:
        """Whether one text is done, as many of its hypotheses having ended as there are beams.

        Args:
          live: log P of those that go on, best first.
          ended: scores of those that ended.
          length: in tokens, of those that go on.
          limit: of the text, in tokens.
          length_penalty: as for ``score``.
        """
        if self.early_stopping is True:
            return True
        reached = limit if self.early_stopping == "never" and length_penalty > 0 else length
        return ~(self.score(live[0], reached, length_penalty) > ended.min())


# Of the papers and of runs; it stops as fairseq does.
WU_RULE = BeamRule()
# Of generate() in Hugging Face transformers, as it is without arguments.
TRANSFORMERS_RULE = BeamRule("power", early_stopping=False, unfinished_compete=True)
