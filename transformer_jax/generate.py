"""Generates text: what a language model goes on with, or what an encoder and decoder make of a text.

    python -m transformer_jax.generate --model=gpt2 --prompt="Once upon a time" --temperature=0.8 --top_p=0.9
    echo "My friends are <mask>" | python -m transformer_jax.generate --model=facebook/bart-base --beam_size=4
    python -m transformer_jax.generate --workdir=runs/stories < prompts.txt > continuations.txt

The model is a folder in the format of Hugging Face transformers, a name on the hub, or the folder of a run
trained here. With --prompt the text appears as it comes (with beam search at its end); else each line of
standard input gives one line, in which a space stands for each end of a line. Greedy search by default;
--beam_size=4 searches, --temperature=1 samples. Special tokens may be written, such as <mask>.
"""

from collections.abc import Sequence
from functools import partial

from absl import app, flags

from transformer_jax import inference
from transformer_jax.command_line import (
    decoding_from_flags,
    define_decoding_flags,
    define_model_flags,
    reported_errors,
    work_on_lines,
)
from transformer_jax.loading import load_model
from transformer_jax.pretrained_model import Pretrained
from transformer_jax.runtime import prepare_process


def _generate_one(loaded: Pretrained, prompt: str) -> None:
    """Prints the text for one prompt as it comes; of beam search, at its end."""
    settings = decoding_from_flags(inference.GREEDY)
    parts = (loaded.config, loaded.params, loaded.tokenizer)
    options = dict(max_new_tokens=FLAGS.max_new_tokens, prompt_start=loaded.prompt_start)
    if settings.temperature == 0 and settings.beam_size > 1:
        pieces = inference.generate_texts(*parts, [prompt], settings, **options)
    else:
        pieces = inference.stream_text(*parts, prompt, settings, **options)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _generate_lines(loaded: Pretrained) -> None:
    generate = partial(
        inference.generate_texts,
        loaded.config,
        loaded.params,
        loaded.tokenizer,
        settings=decoding_from_flags(inference.GREEDY),
        max_new_tokens=FLAGS.max_new_tokens,
        batch_size=FLAGS.batch_size,
        prompt_start=loaded.prompt_start,
    )
    generate(texts=[])  # what cannot be is told before a line is read

    def check(line: str, number: int) -> None:
        assert loaded.tokenizer is not None
        inference.given_tokens(loaded.config, loaded.tokenizer, line, number, loaded.prompt_start)

    def work(lines: list[str], first_number: int) -> None:
        for text in generate(texts=lines, first_number=first_number):
            print(" ".join(text.splitlines()))

    work_on_lines(check, work)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'a text comes from --prompt="..." or standard input, not from {argv[1:]}')
    prepare_process()
    with reported_errors():
        loaded = load_model(FLAGS.model, FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last)
        if FLAGS.prompt is None:
            _generate_lines(loaded)
        else:
            _generate_one(loaded, FLAGS.prompt)


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_model_flags()
    flags.DEFINE_string("prompt", None, "One text to begin with, instead of the lines of standard input.")
    flags.DEFINE_integer("max_new_tokens", inference.MAX_NEW_TOKENS, "Tokens of an output, at most.")
    flags.DEFINE_integer("batch_size", inference.BATCH_SIZE, "Lines of standard input computed at once.")
    define_decoding_flags()
    app.run(main)
