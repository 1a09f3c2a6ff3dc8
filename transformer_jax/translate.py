"""Translates text with a trained run: lines from standard input to standard output.

    echo "A man sleeps." | python -m transformer_jax.translate --workdir=runs/multi30k

Each input line gives one output line, in order; a blank line stays blank. Beam search by default, as the
run's config says; ``--beam_size=1`` is greedy, ``--temperature=1 --top_p=0.9`` samples.
``--from_checkpoint`` takes a step, "latest" or "best"; ``--average_last=5`` averages the parameters of the
last five checkpoints.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax import partitioning
from transformer_jax.checkpoint import Checkpointer, CheckpointError
from transformer_jax.config import ConfigError, TransformerConfig
from transformer_jax.data import DataError, Tokenizer
from transformer_jax.decoding import Decoded, beam_search, repeat_rows, sample
from transformer_jax.experiment import (
    CHECKPOINTS_FOLDER,
    EvaluateConfig,
    Experiment,
    load_config,
    load_tokenizer,
    run_folder,
)
from transformer_jax.models import abstract_params, build
from transformer_jax.models.cache import EncodedContext
from transformer_jax.progress import say
from transformer_jax.runtime import prepare_process
from transformer_jax.types import Array, PyTree

SHORTEST_LENGTH = 16  # tokens; sources are padded to this times a power of two
LINES_AT_ONCE = 1024

# Reported in one line. OSError: a full disk, a folder that cannot be written.
USER_ERRORS = (ConfigError, DataError, CheckpointError, ValueError, OSError)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run folder holds, ready for use."""

    experiment: Experiment
    tokenizer: Tokenizer
    params: PyTree
    steps: tuple[int, ...]  # of the checkpoints that the parameters come from


def load_run(
    workdir: str, from_checkpoint: str = "latest", average_last: int | None = None, mesh: Mesh | None = None
) -> TrainedRun:
    """Reads a run's config, tokenizer and parameters.

    Args:
      workdir: the run folder.
      from_checkpoint: "latest", "best" or a step.
      average_last: mean of the last so many checkpoints, only with "latest"; None takes what the
        run's config says, or as many of them as there are and can be read.
      mesh: a copy of the parameters goes to each of its devices; by default to this process's first.

    Raises:
      ConfigError, DataError, CheckpointError: what is missing, broken or does not fit, by name.
    """
    workdir = run_folder(workdir)
    experiment = load_config(workdir)
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        partitioning.unbox(abstract_params(experiment.model)),
    )
    with Checkpointer(f"{workdir}/{CHECKPOINTS_FOLDER}", experiment.checkpoint) as checkpointer:
        if not checkpointer.steps():
            raise CheckpointError(
                f"{workdir} has no checkpoint yet: training writes one every "
                f"{experiment.checkpoint.every_steps} steps and at its end"
            )
        if from_checkpoint == "latest":
            last = experiment.evaluate.average_last if average_last is None else average_last
            restored = checkpointer.average(template, last, or_fewer=average_last is None)
        elif average_last is not None and average_last > 1:
            raise ConfigError(f"--average_last={average_last} goes with --from_checkpoint=latest only")
        else:
            restored = checkpointer.restore_params(template, _step(checkpointer, from_checkpoint))
    tokenizer = load_tokenizer(workdir, experiment)
    check_tokenizer(tokenizer, restored.data_state, workdir)
    return TrainedRun(experiment, tokenizer, restored.params, restored.steps)


def check_tokenizer(tokenizer: Tokenizer, data_state: dict[str, Any], workdir: str) -> None:
    """Raises DataError unless the checkpoint was trained with this very vocabulary."""
    trained_with = data_state["tokenizer"]
    if tokenizer.fingerprint != trained_with:
        raise DataError(
            f"{workdir}/tokenizer.json is not the tokenizer that the checkpoint was trained with "
            f"(fingerprint {tokenizer.fingerprint}, not {trained_with}): put the original back"
        )


def _step(checkpointer: Checkpointer, name: str) -> int:
    if name == "best":
        best = checkpointer.best_step()
        if best is None:
            raise CheckpointError(f"{checkpointer.directory} has no checkpoint that was scored: use 'latest'")
        return best
    if not name.isdecimal():
        raise ConfigError(f"--from_checkpoint={name!r} must be 'latest', 'best' or a step")
    return int(name)


class Translator:
    """Translates by beam search or sampling, compiled once for each padded length and number of rows.

    Sources are padded to 16, 32, 64, ... tokens and batches to 1, 2, 4, ... rows, so the number of
    compiled shapes is bounded.

    Args:
      config: of the model.
      tokenizer: its vocabulary.
      settings: how to search or sample, extra length and batch size.
      mesh: where to compute, rows over its data axes; by default where the parameters are.
      most_tokens: of a text that are read, eos included; a longer one is cut. By default it is refused, if it
        is longer than the model takes.
    """

    def __init__(
        self,
        config: TransformerConfig,
        tokenizer: Tokenizer,
        settings: EvaluateConfig,
        mesh: Mesh | None = None,
        most_tokens: int | None = None,
    ) -> None:
        self._config, self._tokenizer, self._settings, self._mesh = config, tokenizer, settings, mesh
        self._most_tokens = most_tokens
        self.num_cut = 0  # texts, so far
        replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._decode = jax.jit(self._decode_batch, out_shardings=replicated)

    def translate(self, params: PyTree, texts: Sequence[str], first_number: int = 0) -> list[str]:
        """The best translation of each text, or one drawn at random, in order; blank ones stay empty.

        Args:
          params: of the model.
          texts: any number of sources.
          first_number: of the first text: its number is what a text's random draws depend on, beside
            the seed.

        Raises:
          ValueError: a text is longer than the model's sequences; the message names it.
        """
        sources = [self._encode(text) for text in texts]
        for number, (source, text) in enumerate(zip(sources, texts, strict=True), first_number + 1):
            self._check_length(len(source), number, text)
        translations = [""] * len(texts)
        # Sentences of one length end at about the same time.
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(sources[i]))
        for _, group in itertools.groupby(order, key=lambda i: self._padded(len(sources[i]))):
            for chunk in _chunks(list(group), self._settings.batch_size):
                numbers = [first_number + i for i in chunk]
                decoded = self._decode(params, *self._batch([sources[i] for i in chunk], numbers))
                tokens, lengths = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
                for row, i in enumerate(chunk):
                    translations[i] = self._tokenizer.decode(tokens[row, : lengths[row]])
        return translations

    def _encode(self, text: str) -> np.ndarray:
        ids, most = self._tokenizer.encode(text), self._most_tokens
        if most is not None and len(ids) >= most:
            ids = ids[: most - 1]
            self.num_cut += 1
        return np.append(ids, np.int32(self._tokenizer.id_of("eos")))

    def check(self, text: str, number: int) -> None:
        """Raises ValueError, which names the text by its number, if it is longer than the model takes."""
        self._check_length(len(self._tokenizer.encode(text)) + 1, number, text)

    def _check_length(self, length: int, number: int, text: str) -> None:
        if length > self._config.max_length:
            raise ValueError(
                f"text {number} has {length} tokens, the model takes {self._config.max_length}: split it. "
                f"It begins {text[:60]!r}"
            )

    def _padded(self, length: int) -> int:
        padded = SHORTEST_LENGTH
        while padded < length:
            padded *= 2
        return min(padded, self._config.max_length)

    def _batch(self, sources: Sequence[np.ndarray], numbers: Sequence[int]) -> tuple[Array, ...]:
        """Padded tokens, how many tokens each row's output may have, and the numbers of the texts."""
        rows = 1 << (len(sources) - 1).bit_length()
        tokens = np.full((rows, self._padded(max(map(len, sources)))), self._config.pad_id, np.int32)
        limits = np.zeros(rows, np.int32)  # nothing for rows that only fill up the batch
        ids = np.zeros(rows, np.int32)
        for row, (source, number) in enumerate(zip(sources, numbers, strict=True)):
            tokens[row, : len(source)] = source
            limits[row] = len(source) + self._settings.extra_length
            ids[row] = number
        if self._mesh is None:
            return tokens, limits, ids
        parts = partitioning.num_batch_shards(self._mesh)
        rows_spec = PartitionSpec(partitioning.BATCH_AXES if rows % parts == 0 else None)
        sharding = NamedSharding(self._mesh, rows_spec)
        return tuple(jax.device_put(array, sharding) for array in (tokens, limits, ids))

    def _decode_batch(self, params: PyTree, inputs: jax.Array, limits: jax.Array, ids: jax.Array) -> Decoded:
        """The best or the drawn output of each row."""
        config, settings = self._config, self._settings
        model = build(config)
        variables = {"params": params}
        rows, length = inputs.shape
        layer_axis = 1 if config.scan_layers else 0
        context = cast(EncodedContext, model.apply(variables, inputs, method="encode_context"))
        if settings.temperature == 0:
            context = EncodedContext(
                repeat_rows(context.layers, settings.beam_size, layer_axis),
                repeat_rows(context.segments, settings.beam_size),
            )

        # The model's vocabulary may be larger than the tokenizer's: what it has no text for must not come.
        has_text = jnp.arange(config.vocab_size)[None, :] < self._tokenizer.vocab_size

        def step(tokens, cache):
            arguments = (variables, tokens, context, cache)
            logits, cache = cast(tuple, model.apply(*arguments, method="decode_step"))
            return jnp.where(has_text, logits, -jnp.inf), cache

        max_length = min(length + settings.extra_length, config.max_length)
        cache = model.init_cache(rows, max_length)
        start = jnp.full(rows, config.decoder_start_id, jnp.int32)
        ends: dict[str, Any] = dict(
            max_length=max_length, max_lengths=limits, eos_id=config.eos_id, pad_id=config.pad_id
        )
        if settings.temperature == 0:
            found = beam_search(
                step,
                cache,
                start,
                beam_size=settings.beam_size,
                length_penalty=settings.length_penalty,
                cache_axis=layer_axis,
                **ends,
            )
            return Decoded(*(array[:, 0] for array in found))
        return sample(
            step,
            cache,
            start,
            jax.random.key(settings.seed),
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            top_p=settings.top_p,
            row_ids=ids,
            **ends,
        )


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


DECODING_FLAGS = ("beam_size", "length_penalty", "temperature", "top_k", "top_p", "seed")


def settings_from_flags(settings: EvaluateConfig, **changes: Any) -> EvaluateConfig:
    """The run's settings with those that flags, or ``changes`` that are not None, set otherwise."""
    changes |= {name: FLAGS[name].value for name in DECODING_FLAGS}
    return dataclasses.replace(
        settings, **{name: value for name, value in changes.items() if value is not None}
    )


def define_run_flags() -> None:
    """The flags that choose a run and how it decodes; the defaults are what the run's config says."""
    flags.DEFINE_string("workdir", None, "Folder of the run, as given to transformer_jax.train.")
    flags.DEFINE_string("from_checkpoint", "latest", "Which checkpoint: 'latest', 'best' or a step.")
    flags.DEFINE_integer(
        "average_last",
        None,
        "Average the parameters of the last so many checkpoints; by default what the run's config says.",
        lower_bound=1,
    )
    flags.DEFINE_integer("beam_size", None, "Hypotheses kept in beam search; 1 is greedy search.")
    flags.DEFINE_float(
        "length_penalty", None, "Alpha of the length penalty of beam search; higher favours longer outputs."
    )
    flags.DEFINE_float("temperature", None, "Above 0: sample instead of searching; 1 is the model's own.")
    flags.DEFINE_integer("top_k", None, "Sampling: only the so many most probable tokens; 0 is all.")
    flags.DEFINE_float("top_p", None, "Sampling: only the most probable tokens of at least this mass.")
    flags.DEFINE_integer("seed", None, "Of sampling.")
    flags.mark_flag_as_required("workdir")


def _translate_lines(run: TrainedRun, settings: EvaluateConfig, mesh: Mesh) -> None:
    """Line by line where someone types, else many at a time; what precedes a bad line is translated."""
    translator = Translator(run.experiment.model, run.tokenizer, settings, mesh)
    at_once = 1 if sys.stdin.isatty() else LINES_AT_ONCE
    lines: list[str] = []
    done = 0

    def flush() -> None:
        nonlocal done
        for translation in translator.translate(run.params, lines, done):
            print(translation.replace("\n", " "))
        sys.stdout.flush()
        done += len(lines)
        lines.clear()

    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
            translator.check(text, number)
        except ValueError as error:
            flush()
            raise ValueError(f"line {number} of standard input: {error}") from error
        lines.append(text)
        if len(lines) == at_once:
            flush()
    flush()


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"text comes from standard input, not from {argv[1:]}")
    prepare_process()
    try:
        mesh = partitioning.make_mesh(partitioning.MeshConfig())
        run = load_run(FLAGS.workdir, FLAGS.from_checkpoint, FLAGS.average_last, mesh)
        say(f"parameters of step {', '.join(map(str, run.steps))}")
        _translate_lines(run, settings_from_flags(run.experiment.evaluate), mesh)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_run_flags()
    app.run(main)
