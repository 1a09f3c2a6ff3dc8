"""Classifies texts or images: prints a label and its probability for each line of standard input.

    echo "What a lovely film." | python -m transformer_jax.classify --workdir=runs/sst2
    python -m transformer_jax.classify --model=textattack/bert-base-uncased-SST-2 --top=2 < reviews.txt
    ls photos/*.jpg | python -m transformer_jax.classify --model=google/vit-base-patch16-224

The model is an encoder trained to classify: a folder in the format of Hugging Face transformers, a name on
the hub, or the folder of a run. The output is separated by tabs; with --top=2 a line has the two most
probable
labels: label, probability, label, probability. With --pairs each input line has two texts, separated by a
  tab.

For a model of images each input line is the path of a file. Images are resized to the model's size as the
folder's preprocessor_config.json says, or as in the evaluation of the run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from transformer_jax.cli.flags import define_model_flags, reported_errors, work_on_lines
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.texts import BATCH_SIZE, encoded_input
from transformer_jax.runs.loading import load_model


def parse_pair(line: str) -> tuple[str, str]:
    """Returns the two texts of a line; raises ValueError unless it has exactly one tab."""
    parts = line.split("\t")
    if len(parts) != 2:
        raise ValueError(
            f"with --pairs a line is two texts separated by a tab, but it has {len(parts) - 1} tabs"
        )
    return parts[0], parts[1]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"text comes from standard input, not from {argv[1:]}")
    prepare_process()
    with reported_errors():
        loaded = load_model(FLAGS.model, FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        loaded.classify([])  # a model of another kind is an error before a line is read
        if FLAGS.pairs and not loaded.config.front_end.has_tokens:
            raise ConfigError(
                f"--pairs is for texts, but this is a model of {loaded.config.front_end.UNIT}: a line is the "
                "path of one"
            )
        _classify_lines(loaded)


def _classify_lines(loaded: Pretrained) -> None:
    front_end = loaded.config.front_end
    of_model_size = dataclasses.replace(loaded, sizing=None)
    inputs: list[Any] = []  # of the lines that wait; the file of an image is read once

    def check(line: str, number: int) -> None:
        given = parse_pair(line) if FLAGS.pairs else line
        arrays = encoded_input(loaded.config, loaded.tokenizer, given, number, loaded.sizing)
        inputs.append(given if front_end.has_tokens else arrays[front_end.FEATURE])

    def classify(lines: list[str], first_number: int) -> None:
        _print_classes(of_model_size, inputs)
        inputs.clear()

    work_on_lines(check, classify)


def _print_classes(loaded: Pretrained, inputs: Sequence[Any]) -> None:
    for row in loaded.classify(inputs, batch_size=FLAGS.batch_size):
        print("\t".join(f"{name}\t{probability:.4f}" for name, probability in row[: FLAGS.top]))


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_model_flags()
    flags.DEFINE_integer("top", 1, "How many labels of each line to print.", lower_bound=1)
    flags.DEFINE_bool("pairs", False, "Each line holds two texts, separated by a tab.")
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "Lines computed at once.", lower_bound=1)
    app.run(main)
