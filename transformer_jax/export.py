"""Exports the model of a run to a folder that Hugging Face transformers can load; PyTorch is not needed.

    python -m transformer_jax.export --workdir=runs/bert path/to/folder
    python -m transformer_jax.pretrained verify path/to/folder        # needs PyTorch; compares the outputs

The folder contains config.json, the weights as safetensors, and the tokenizer, and transformers computes the
same logits from it. The architecture must be one that transformers has, such as BERT, GPT-2, T5, BART,
MarianMT or ViT. One thing cannot be stored in the folder: a language model trained with this library expects
an end-of-text token before every document, and therefore before every prompt.
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
        raise app.UsageError(
            "give one folder: python -m transformer_jax.export --workdir=RUN FOLDER", exitcode=2
        )
    prepare_process()
    with reported_errors():
        found = from_run(FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        save_pretrained(argv[1], found)
        say(f"exported to {argv[1]}: a {found.family.name} checkpoint that transformers can load")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_run_flags()
    app.run(main)
