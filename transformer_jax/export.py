"""Writes the model of a run as a folder that Hugging Face transformers loads, without PyTorch.

    python -m transformer_jax.export --workdir=runs/bert path/to/folder
    python -m transformer_jax.pretrained verify path/to/folder        # where PyTorch is, to see both agree

The folder has config.json, safetensors and the tokenizer, and transformers computes the same logits from it.
The
model must be one that transformers has: BERT, GPT-2, T5, BART, MarianMT or ViT. One thing cannot be written
  to
such a folder: language models of this project are trained with an end-of-text token before every document, so
their prompts need this token too.
"""

from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.flags import define_run_flags, reported_errors
from transformer_jax.cli.process import prepare_process
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.reporting.progress import say
from transformer_jax.runs.loading import from_run


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("say: python -m transformer_jax.export --workdir=RUN FOLDER", exitcode=2)
    prepare_process()
    with reported_errors():
        found = from_run(FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        save_pretrained(argv[1], found)
        say(f"{argv[1]}: a {found.family.name} that transformers loads")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_run_flags()
    app.run(main)
