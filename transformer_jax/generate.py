"""Generates text: what a language model goes on with, or what an encoder and decoder make of a text.

    python -m transformer_jax.generate --model=gpt2 --prompt="Once upon a time" --temperature=0.8 --top_p=0.9
    echo "My friends are <mask>" | python -m transformer_jax.generate --model=facebook/bart-base --beam_size=4
    python -m transformer_jax.generate --workdir=runs/stories < prompts.txt > continuations.txt

The model is a folder in the format of Hugging Face transformers, a name on the hub, or the folder of a run
trained here. With --prompt the text appears as it comes (with beam search at its end); else each line of
standard input gives one line, in which a space stands for each end of a line. --beam_size=4 searches,
--temperature=1 samples. Where no flag says it a checkpoint's generation_config.json does, and where that
does not, the search is greedy and gives 128 tokens at most. Special tokens may be written, such as <mask>.
"""

from collections.abc import Sequence
from typing import Any

from absl import app, flags

from transformer_jax.cli.flags import (
    define_decoding_flags,
    define_model_flags,
    reported_errors,
    work_on_lines,
)
from transformer_jax.cli.process import prepare_process
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.texts import (
    BATCH_SIZE,
    checked_generator,
    generate_texts,
    given_tokens,
    stream_text,
)
from transformer_jax.runs.loading import load_model


def _options(loaded: Pretrained) -> dict[str, Any]:
    """How to generate, by the flags and what comes with the model: arguments of ``generate_texts``."""
    stopping = {None: None, "true": True, "false": False, "never": "never"}[FLAGS.early_stopping]
    chosen = loaded.generation.chosen(
        max_new_tokens=FLAGS.max_new_tokens,
        min_new_tokens=FLAGS.min_new_tokens,
        num_beams=FLAGS.beam_size,
        length_penalty=FLAGS.length_penalty,
        early_stopping=stopping,
        no_repeat_ngram_size=FLAGS.no_repeat_ngram_size,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        seed=FLAGS.seed,
    )
    return chosen._asdict() | {"prompt_start": loaded.prompt_start}


def _generate_one(loaded: Pretrained, prompt: str) -> None:
    """Prints the text for one prompt as it comes; of beam search, at its end."""
    options = _options(loaded)
    parts = (loaded.config, loaded.params, loaded.tokenizer)
    if options["settings"].temperature == 0 and options["settings"].beam_size > 1:
        pieces = generate_texts(*parts, [prompt], **options)
    else:
        pieces = stream_text(*parts, prompt, **options)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _generate_lines(loaded: Pretrained) -> None:
    options, parts = _options(loaded), (loaded.config, loaded.params, loaded.tokenizer)
    # What cannot be is told before a line is read.
    generator = checked_generator(
        loaded.config,
        loaded.tokenizer,
        options["settings"],
        options["rules"],
        options["max_new_tokens"],
        FLAGS.batch_size,
    )

    def check(line: str, number: int) -> None:
        assert loaded.tokenizer is not None
        given_tokens(loaded.config, loaded.tokenizer, line, number, loaded.prompt_start, generator)

    def work(lines: list[str], first_number: int) -> None:
        texts = generate_texts(
            *parts, lines, first_number=first_number, batch_size=FLAGS.batch_size, **options
        )
        for text in texts:
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
    flags.DEFINE_integer("max_new_tokens", None, "Tokens of an output, at most.")
    flags.DEFINE_integer("min_new_tokens", None, "Tokens of an output, at least.")
    flags.DEFINE_integer("no_repeat_ngram_size", None, "No so many tokens come in the same order twice.")
    flags.DEFINE_enum(
        "early_stopping",
        None,
        ["true", "false", "never"],
        "Beam search ends as soon as --beam_size outputs have ended; or not before the best of those that "
        "go on is worse than all of them; or not before it must become so.",
    )
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "Lines of standard input computed at once.")
    define_decoding_flags()
    app.run(main)
