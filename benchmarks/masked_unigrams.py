"""Measures a masked language model that predicts by token frequency alone, as a baseline for a run's figures.

    python benchmarks/masked_unigrams.py --workdir=runs/bert_mlm --split=test

It is evaluated on the tokens that the run's own evaluation masks. The probability of a token is its share of
the training tokens, with one added to every count; the prediction is always the most frequent token.
"""

import argparse
import pathlib

import numpy as np

from transformer_jax.data import TokenizerConfig, evaluation_pieces, load_source, load_sources, training_texts
from transformer_jax.objectives import MaskedLM
from transformer_jax.runs import Experiment, load_config, load_tokenizer, make_transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of a run of masked_lm")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    experiment = load_config(arguments.workdir)
    if not isinstance(experiment.objective, MaskedLM):
        parser.error(
            f"--workdir={arguments.workdir} is a run with the objective {experiment.objective.name}; "
            "it must be one with masked_lm"
        )
    loss, accuracy, count = score(experiment, arguments.workdir, arguments.split)
    print(f"{count:,} masked tokens of {arguments.split}: loss {loss:.4f}, accuracy {100 * accuracy:.2f} %")


def score(experiment: Experiment, workdir: pathlib.Path, split: str) -> tuple[float, float, int]:
    """Returns the mean loss in nats, the accuracy (from 0 to 1) and the number of masked tokens."""
    tokenizer = load_tokenizer(workdir, experiment)
    training = load_sources(experiment.data.sources, "train")
    counts = np.ones(tokenizer.vocab_size)
    for text in training_texts(TokenizerConfig(max_training_examples=len(training)), training):
        counts += np.bincount(tokenizer.encode(text), minlength=tokenizer.vocab_size)
    transform = make_transform(experiment, tokenizer, train=False)
    _, pieces = evaluation_pieces(experiment.data, load_source(experiment.data.source, split), transform)
    masked = np.concatenate([piece["targets"][piece["targets_weights"] > 0] for piece in pieces])
    losses = np.log(counts.sum()) - np.log(counts[masked])
    return float(losses.mean()), float((masked == counts.argmax()).mean()), len(masked)


if __name__ == "__main__":
    main()
