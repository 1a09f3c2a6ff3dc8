"""Classification of the words of a text, as in BERT's named-entity recognition (Devlin et al. 2019)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.objectives.base import Apply, Rngs, Sums
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.objectives.cutting import check_room, cut_at_borders, word_starts
from transformer_jax.objectives.labels import LabelledObjective, label_id
from transformer_jax.objectives.losses import target_weights
from transformer_jax.types import Batch, Drawing, Encoder, Example, PyTree, TokenExample


@dataclasses.dataclass(frozen=True)
class TokenClassification(LabelledObjective):
    """Predict the class of each word at the first of its tokens (section 5.3).

    ``inputs`` of an example is a list of words, and ``labels`` a list of the same length. The words are
    joined by spaces and tokenized. A text that is too long is cut between words, so that each word has one
    loss.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy",)
    FEATURES: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    LIST_FEATURES: ClassVar[tuple[str, ...]] = ("inputs", "labels")
    HEADS: ClassVar[tuple[str, ...]] = ("token_classes",)
    PARTS: ClassVar[tuple[str, ...]] = ("encoder",)

    name: Literal["token_classification"] = "token_classification"

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the tokens, the number of each one's word, and the words' label ids at their first tokens.

        Raises:
          ValueError: the numbers of words and labels differ, a label is unknown, or a word has no tokens, for
            example because it is blank.
        """
        words, labels = example["inputs"], example["labels"]
        if len(words) != len(labels):
            raise ValueError(f"{len(words)} words have {len(labels)} labels: {' '.join(words)[:80]!r}")
        ids_of_labels = np.array([label_id(label, self.labels) for label in labels], np.int32)
        encoding = tokenizer.encode_with_places(" ".join(words))
        stops = np.cumsum([len(word) + 1 for word in words]) - 1
        # The last character decides, because a token may begin with the space before its word.
        word_of = np.searchsorted(stops, encoding.stops, side="left").astype(np.int32)
        missing = sorted(set(range(len(words))) - set(word_of.tolist()))
        if missing:
            raise ValueError(
                f"the word {words[missing[0]]!r} (number {missing[0] + 1} of {len(words)}) has no tokens"
            )
        weights = word_starts(word_of).astype(np.int32)
        return {
            "inputs": encoding.ids,
            "targets": ids_of_labels[word_of] * weights,
            "targets_weights": weights,
            "_words": word_of,
        }

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns pieces such as "[CLS] words [SEP]", as the tokenizer has it, that contain all words.

        Raises:
          ValueError: ``max_length`` has no room for the special tokens and a token, or the tokenizer lacks
            one of the special tokens.
        """
        before, after = context.tokenizer.template(1)
        num_special = len(before) + len(after)
        check_room(context.max_length, num_special + 1)
        found = []
        for start, stop in cut_at_borders(context.max_length - num_special, word_starts(tokens["_words"])):
            piece = {}
            for key in ("inputs", "targets", "targets_weights"):
                is_input = int(key == "inputs")  # special tokens have no target
                parts = before * is_input, tokens[key][start:stop], after * is_input
                piece[key] = np.concatenate(parts).astype(np.int32)
            found.append(piece)
        return found

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the cross-entropy over words, summed, in nats; see ``class_losses``.

        Returns:
          The summed loss, and the sums ``loss``, ``correct`` and ``tokens``, which is the number of words.
        """
        logits = run_model(apply, params, side_arrays(batch, "inputs"), rngs, train=train)
        weights = target_weights(batch)
        loss, is_correct = self.class_losses(logits, jnp.asarray(batch["targets"]), weights)
        return loss, {"loss": loss, "correct": jnp.sum(is_correct), "tokens": jnp.sum(weights)}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns ``loss`` and ``accuracy`` per word."""
        return {"loss": sums["loss"] / sums["tokens"], "accuracy": sums["correct"] / sums["tokens"]}
