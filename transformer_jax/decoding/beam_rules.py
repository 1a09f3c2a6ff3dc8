"""The rules of beam search in which papers and libraries differ: length normalization and stopping."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BeamRule:
    """Defines how beam search ranks outputs of different lengths, and when it stops.

    Attributes:
      weighing: the divisor of log P in a score, where p is the length penalty: "wu" for
        ``((5 + length) / 6) ** p`` (Wu et al. 2016, equation 14, without coverage), "power" for
        ``length ** p``. The length is in tokens, with eos and without prompt or start token.
      early_stopping: when the search for a text stops, in every case not before ``beam_size`` hypotheses have
        ended. True: at once. False: when the most probable live hypothesis, scored as it stands, does not
        score above the worst ended one. "never": the same, but if the penalty is positive, the live
        hypothesis is scored as if it reached the limit with the log P that it has, so that no better output
        is missed.
      unfinished_compete: whether hypotheses that reach the limit are ranked by score among the ended ones, or
        after all of them.
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
        """Returns the scores of hypotheses of ``length`` tokens."""
        tokens = length.astype(jnp.float32)
        if self.weighing == "power":
            return log_probs / tokens**length_penalty
        return log_probs / ((5.0 + tokens) / 6.0) ** length_penalty

    def is_settled(
        self, live: jax.Array, ended: jax.Array, length: jax.Array, limit: jax.Array, length_penalty: float
    ) -> jax.Array | bool:
        """Returns whether the search for a text stops, if ``beam_size`` of its hypotheses have ended.

        Args:
          live: log P of the live hypotheses, best first.
          ended: scores of the ended hypotheses.
          length: number of tokens of the live hypotheses.
          limit: maximum number of tokens of the text.
          length_penalty: as for ``score``.
        """
        if self.early_stopping is True:
            return True
        reached = limit if self.early_stopping == "never" and length_penalty > 0 else length
        return ~(self.score(live[0], reached, length_penalty) > ended.min())


# The rule of the papers and of runs. It stops as fairseq does.
WU_RULE = BeamRule()
# The default rule of generate() in Hugging Face transformers.
TRANSFORMERS_RULE = BeamRule("power", early_stopping=False, unfinished_compete=True)
