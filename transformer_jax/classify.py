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

import numpy as np
from absl import app, flags

from transformer_jax.cli.flags import define_model_flags, reported_errors, work_on_lines
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError
from transformer_jax.inference.images import model_image
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.texts import BATCH_SIZE, Classified, encoder_tokens
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
        if loaded.config.image_shape:
            _classify_images(loaded)
        else:
            _classify_texts(loaded)


def _classify_texts(loaded: Pretrained) -> None:
    def parsed(line: str) -> Classified:
        return parse_pair(line) if FLAGS.pairs else line

    def check(line: str, number: int) -> None:
        assert loaded.tokenizer is not None
        encoder_tokens(loaded.config, loaded.tokenizer, parsed(line), number)

    def classify(lines: list[str], first_number: int) -> None:
        _print_classes(loaded, [parsed(line) for line in lines])

    work_on_lines(check, classify)


def _classify_images(loaded: Pretrained) -> None:
    if FLAGS.pairs:
        raise ConfigError("--pairs is for texts, but this is a model of images: a line is the path of one")
    images: list[np.ndarray] = []  # of the lines that wait: a file is read once
    of_model_size = dataclasses.replace(loaded, sizing=None)

    def check(line: str, number: int) -> None:
        images.append(model_image(loaded.config, line, number, loaded.sizing))

    def classify(lines: list[str], first_number: int) -> None:
        _print_classes(of_model_size, images)
        images.clear()

    work_on_lines(check, classify)


def _print_classes(loaded: Pretrained, inputs: Sequence[Classified]) -> None:
    for row in loaded.classify(inputs, batch_size=FLAGS.batch_size):
        print("\t".join(f"{name}\t{probability:.4f}" for name, probability in row[: FLAGS.top]))


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_model_flags()
    flags.DEFINE_integer("top", 1, "How many labels of each line to print.", lower_bound=1)
    flags.DEFINE_bool("pairs", False, "Each line holds two texts, separated by a tab.")
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "Lines computed at once.", lower_bound=1)
    app.run(main)
