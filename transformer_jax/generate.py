"""Generates text: continuations of prompts by a language model, or the outputs of an encoder-decoder for
texts.

    python -m transformer_jax.generate --model=gpt2 --prompt="Once upon a time" --temperature=0.8 --top_p=0.9
    echo "My friends are <mask>" | python -m transformer_jax.generate --model=facebook/bart-base --beam_size=4
    python -m transformer_jax.generate --workdir=runs/stories < prompts.txt > continuations.txt

The model is a folder in the format of Hugging Face transformers, a name on the hub, or the folder of a run.
With --prompt the program prints the text while it is generated (with beam search at its end). Without it,
each line of standard input gives one line of output, in which ends of lines are replaced by spaces.
--beam_size=4 (or --num_beams=4) searches, and --temperature=1 samples. A setting without a flag is that of
the checkpoint's generation_config.json. If that does not have it either, the search is greedy and gives at
most 128 tokens. Special tokens may be written, such as <mask>. --decoder_prompt is the text that every output
of an encoder-decoder continues.
"""

import functools
from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.flags import (
    define_decoding_flags,
    define_model_flags,
    reported_errors,
    work_on_lines,
)
from transformer_jax.cli.process import prepare_process
from transformer_jax.decoding import DecodingSettings
from transformer_jax.inference.generation import TextGenerator
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.texts import BATCH_SIZE
from transformer_jax.runs.loading import load_model


def _text_generator(loaded: Pretrained, batch_size: int) -> tuple[TextGenerator, DecodingSettings]:
    """Returns a generator with the settings of the flags, else those that come with the model."""
    stopping = {None: None, "true": True, "false": False, "never": "never"}[FLAGS.early_stopping]
    chosen = loaded.generation.chosen(
        max_new_tokens=FLAGS.max_new_tokens,
        min_new_tokens=FLAGS.min_new_tokens,
        beam_size=FLAGS.beam_size,
        length_penalty=FLAGS.length_penalty,
        early_stopping=stopping,
        no_repeat_ngram_size=FLAGS.no_repeat_ngram_size,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        seed=FLAGS.seed,
    )
    generator = TextGenerator(
        loaded.config,
        loaded.tokenizer,
        chosen.settings,
        rules=chosen.rules,
        max_new_tokens=chosen.max_new_tokens,
        batch_size=batch_size,
        prompt_start=loaded.prompt_start,
    )
    return generator, chosen.settings


def _generate_one(loaded: Pretrained, prompt: str) -> None:
    """Prints the text for one prompt piece by piece, or whole at the end of beam search."""
    generator, settings = _text_generator(loaded, batch_size=1)
    if settings.temperature == 0 and settings.beam_size > 1:
        pieces = generator.generate(loaded.params, [prompt], decoder_prompt=FLAGS.decoder_prompt)
    else:
        pieces = generator.stream(loaded.params, prompt, decoder_prompt=FLAGS.decoder_prompt)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _generate_lines(loaded: Pretrained) -> None:
    generator, _ = _text_generator(
        loaded, FLAGS.batch_size
    )  # impossible settings are an error before a line is read
    generator.generate(loaded.params, [], decoder_prompt=FLAGS.decoder_prompt)

    def work(lines: list[str], first_number: int) -> None:
        for text in generator.generate(loaded.params, lines, first_number, FLAGS.decoder_prompt):
            print(" ".join(text.splitlines()))

    work_on_lines(functools.partial(generator.tokens, decoder_prompt=FLAGS.decoder_prompt), work)


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
    flags.DEFINE_integer("max_new_tokens", None, "Maximum number of tokens of an output.")
    flags.DEFINE_integer("min_new_tokens", None, "Minimum number of tokens of an output.")
    flags.DEFINE_integer("no_repeat_ngram_size", None, "No sequence of this many tokens occurs twice.")
    flags.DEFINE_enum(
        "early_stopping",
        None,
        ["true", "false", "never"],
        "true: beam search stops as soon as --beam_size outputs have ended. false: it goes on while the best "
        "live hypothesis scores better than one of them. never: it goes on while that hypothesis could.",
    )
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "Lines of standard input computed at once.")
    flags.DEFINE_string("decoder_prompt", None, "Text that every output of an encoder-decoder continues.")
    define_decoding_flags()
    flags.DEFINE_alias("num_beams", "beam_size")
    app.run(main)
