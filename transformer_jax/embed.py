"""Turns texts into vectors: each line of standard input gives one, a JSON list on a line of its own.

    echo "A man sleeps." | python -m transformer_jax.embed --model=sentence-transformers/all-MiniLM-L6-v2
    python -m transformer_jax.embed --workdir=runs/bert --output=vectors.npy < texts.txt

The model is an encoder of text, such as BERT: a folder in the format of Hugging Face transformers, a name on
the hub, or the folder of a run trained here. A vector is the mean over the vectors of a text's tokens, as in
sentence-transformers, scaled to length 1 unless there is --nonormalize, so that the product of two vectors
says how alike their texts are. --output=FILE.npy writes one float32 array (texts, numbers) for numpy.load.
"""

import io
import json
import os
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from transformer_jax import inference
from transformer_jax.command_line import define_model_flags, reported_errors, work_on_lines
from transformer_jax.config import ConfigError
from transformer_jax.files import write_whole
from transformer_jax.loading import load_model
from transformer_jax.progress import say
from transformer_jax.runtime import prepare_process


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"text comes from standard input, not from {argv[1:]}")
    prepare_process()
    with reported_errors():
        output = None if FLAGS.output is None else os.path.expanduser(FLAGS.output)
        if output is not None and not output.endswith(".npy"):
            raise ConfigError(f"--output={output} must end in .npy")
        loaded = load_model(FLAGS.model, FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        found = [loaded.embed([])]  # a model of another kind is told before a line is read

        def check(line: str, number: int) -> None:
            assert loaded.tokenizer is not None
            inference.encoder_tokens(loaded.config, loaded.tokenizer, line, number)

        def embed(lines: list[str], first_number: int) -> None:
            vectors = loaded.embed(lines, normalize=FLAGS.normalize, batch_size=FLAGS.batch_size)
            if output is not None:
                found.append(vectors)
                return
            for vector in vectors:
                # The shortest digits that give the same float32 again.
                print(json.dumps([float(str(number)) for number in vector]))

        work_on_lines(check, embed)
        if output is not None:
            content = io.BytesIO()
            vectors = np.concatenate(found)
            np.save(content, vectors)
            write_whole(output, content.getvalue())
            say(f"{output}: {len(vectors):,} vectors of {vectors.shape[1]:,} numbers")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_model_flags()
    flags.DEFINE_string("output", None, "A file ending in .npy, instead of standard output.")
    flags.DEFINE_bool("normalize", True, "Scale each vector to length 1.")
    flags.DEFINE_integer("batch_size", inference.BATCH_SIZE, "Lines computed at once.", lower_bound=1)
    app.run(main)
