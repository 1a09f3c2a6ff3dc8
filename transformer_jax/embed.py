"""Computes embeddings of texts: prints one for each line of standard input, a JSON list on a line.

    echo "A man sleeps." | python -m transformer_jax.embed --model=sentence-transformers/all-MiniLM-L6-v2
    python -m transformer_jax.embed --workdir=runs/bert --output=vectors.npy < texts.txt

The model is an encoder of text, such as BERT: a folder in the format of Hugging Face transformers, a name on
the hub, or the folder of a run. A folder of sentence-transformers configures its embeddings: the mean over a
text's tokens or the output for the first one, scaled to length 1 or not, and the maximum length of a text.
For other models an embedding is the mean, scaled to length 1, so that the product of two embeddings is the
similarity of their texts. --normalize and --nonormalize override this. A text that is too long is an error;
--cut truncates it, as sentence-transformers does, and the program prints how many texts it has truncated.
--output=FILE.npy writes one float32 array (texts, numbers) for numpy.load.
"""

import io
import json
import os
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from transformer_jax.cli.flags import define_model_flags, reported_errors, work_on_lines
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError
from transformer_jax.files import check_writable, write_whole
from transformer_jax.inference.texts import BATCH_SIZE
from transformer_jax.inference.vectors import PLAIN, longest, vector_tokens
from transformer_jax.objectives.classification import encode_texts
from transformer_jax.reporting.progress import say
from transformer_jax.runs.loading import load_model


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"text comes from standard input, not from {argv[1:]}")
    prepare_process()
    with reported_errors():
        output = None if FLAGS.output is None else os.path.expanduser(FLAGS.output)
        if output is not None and not output.endswith(".npy"):
            raise ConfigError(f"--output={output} must end in .npy")
        if output is not None:
            check_writable(output)  # before the work of hours, not after it
        loaded = load_model(FLAGS.model, FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        found = [loaded.embed([])]  # a model of another kind is an error before a line is read

        pooling = loaded.pooling or PLAIN
        most = longest(loaded.config, pooling)
        num_cut = 0

        def check(line: str, number: int) -> None:
            nonlocal num_cut
            assert loaded.tokenizer is not None
            parts = (loaded.config, loaded.tokenizer, line, number, pooling)
            vector_tokens(*parts, cut=FLAGS.cut)
            num_cut += len(encode_texts(loaded.tokenizer, line)["inputs"]) > most

        def embed(lines: list[str], first_number: int) -> None:
            vectors = loaded.embed(
                lines, normalize=FLAGS.normalize, cut=FLAGS.cut, batch_size=FLAGS.batch_size
            )
            if output is not None:
                found.append(vectors)
                return
            for vector in vectors:
                # The shortest decimal number that parses to the same float32.
                print(json.dumps([float(str(number)) for number in vector]))

        work_on_lines(check, embed)
        if num_cut:
            say(f"{num_cut:,} texts were cut to {most} tokens")
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
    flags.DEFINE_bool(
        "normalize", None, "Scale each vector to length 1; by default what the model's folder says, or yes."
    )
    flags.DEFINE_bool("cut", False, "Take the beginning of a text that is too long, instead of an error.")
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "Lines computed at once.", lower_bound=1)
    app.run(main)
