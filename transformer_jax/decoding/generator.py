"""Decoding batches of token sequences: sources of an encoder–decoder, prompts of a decoder alone.

What is between texts and tokens is not here; see ``inference`` and ``translate``.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32

from transformer_jax.decoding.beam_rules import WU_RULE
from transformer_jax.decoding.constraints import Given
from transformer_jax.decoding.sampling import draw_tokens
from transformer_jax.decoding.search import Constrain, Decoded, beam_search, repeat_rows, sample
from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules
from transformer_jax.models import TransformerConfig, build
from transformer_jax.models.cache import DecoderCache, EncodedContext, PromptContext
from transformer_jax.sharding import partitioning
from transformer_jax.types import PyTree

SHORTEST_LENGTH = 16  # tokens; sources and prompts are padded to this times a power of two

Tokens = Int32[np.ndarray, "_"]


def batches_by_length(
    lengths: Sequence[int], batch_size: int, max_length: int
) -> Iterator[tuple[int, int, list[int]]]:
    """Which sequences to compute together: those of about one length, in few different shapes.

    Yields:
      Rows (1, 2, 4, ...) and length (16, 32, 64, ... up to ``max_length``) of a batch, and the places of at
      most ``batch_size`` sequences that go into it, shorter ones first.

    Raises:
      ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"{batch_size=} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for length, group in itertools.groupby(order, key=lambda i: _padded(lengths[i], max_length)):
        members = list(group)
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            yield 1 << (len(chunk) - 1).bit_length(), length, chunk


def _padded(length: int, max_length: int) -> int:
    padded = SHORTEST_LENGTH
    while padded < length:
        padded *= 2
    return min(padded, max_length)


def padding_may_come(config: TransformerConfig) -> bool:
    """Whether ``config.pad_id`` is a token that outputs may have: of a decoder alone, or where it is eos.

    Elsewhere nothing has trained its logit, and published MarianMT models rate it highest of all.
    """
    return config.is_decoder_only or config.pad_id == config.eos_id


class Generator:
    """Decodes by beam search or sampling, compiled once for each padded length and number of rows.

    Sequences are padded (an encoder's at the end, prompts at the start) and batched as ``batches_by_length``
    says, so the number of compiled shapes is bounded.

    Args:
      config: of the model, which has a decoder.
      settings: how to search or sample.
      num_tokens: of the tokenizer; tokens of the model beyond have no text, and do not come.
      output_length: tokens that an output may have, eos included, by the length of its source or prompt.
      batch_size: sequences decoded at once.
      rules: what the settings leave open.
      mesh: where to compute, rows over its data axes; by default where the parameters are.

    Raises:
      ValueError: the rules name a token that the model does not have.
    """

    def __init__(
        self,
        config: TransformerConfig,
        settings: DecodingSettings,
        num_tokens: int,
        *,
        output_length: Callable[[int], int],
        batch_size: int,
        rules: TextRules = OWN_RULES,
        mesh: Mesh | None = None,
    ) -> None:
        self._config, self._settings, self._num_tokens = config, settings, num_tokens
        self._output_length, self._batch_size, self._mesh = output_length, batch_size, mesh
        rules.constraints.check(config.vocab_size)
        banned = () if padding_may_come(config) else (config.pad_id,)
        banned = tuple(dict.fromkeys((*rules.constraints.banned_ids, *banned)))
        # A beam of 1 is greedy search by the rule that stops as soon as it has ended.
        beams = rules.beams if settings.beam_size > 1 else WU_RULE
        constraints = dataclasses.replace(rules.constraints, banned_ids=banned)
        self._rules = dataclasses.replace(rules, beams=beams, constraints=constraints)
        replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._decode = jax.jit(self._decode_batch, out_shardings=replicated)
        self._begin = jax.jit(self._begin_row)
        self._next = jax.jit(self._next_token)

    def generate(
        self, params: PyTree, sequences: Sequence[Tokens], numbers: Sequence[int] | None = None
    ) -> list[Tokens]:
        """The best output of each source, or continuation of each prompt, or one drawn at random, in order.

        Args:
          params: of the model.
          sequences: sources or prompts, each of 1 to ``config.max_length`` tokens.
          numbers: of the sequences, by default 0, 1, 2, ...: what random draws depend on, beside the seed.

        Returns:
          Token ids, with eos where it came, without the prompt.

        Raises:
          ValueError: a sequence is empty or too long; the message names it.
        """
        numbers = range(len(sequences)) if numbers is None else numbers
        lengths = [len(sequence) for sequence in sequences]
        for length, number in zip(lengths, numbers, strict=True):
            self.check_length(length, f"sequence {number + 1}")
        outputs: list[Tokens] = [np.zeros(0, np.int32)] * len(sequences)
        # Sequences of one length end at about the same time.
        for rows, length, chunk in batches_by_length(lengths, self._batch_size, self._config.max_length):
            arrays = self._batch(rows, length, [sequences[i] for i in chunk], [numbers[i] for i in chunk])
            decoded = self._decode(params, *arrays)
            tokens, ends = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
            for row, i in enumerate(chunk):
                outputs[i] = tokens[row, : ends[row]]
        return outputs

    def stream(self, params: PyTree, sequence: Tokens, number: int = 0) -> Iterator[int]:
        """The tokens of one output as they come, greedily or drawn: those that ``generate`` gives.

        Raises:
          ValueError: the sequence is empty or too long, or the settings ask for beam search, which knows its
            first token only at the end.
        """
        self.check_length(len(sequence), f"sequence {number + 1}")
        if self._settings.temperature == 0 and self._settings.beam_size > 1:
            raise ValueError(
                f"beam_size={self._settings.beam_size} cannot stream: what comes first is known at the end. "
                "Set it to 1, or a temperature above 0"
            )
        return self._stream(params, sequence, number)

    def _stream(self, params: PyTree, sequence: Tokens, number: int) -> Iterator[int]:
        length = _padded(len(sequence), self._config.max_length)
        inputs, lengths, limits, ids = self._batch(1, length, [sequence], [number])
        context, cache, last, given = self._begin(params, inputs, lengths, limits)
        made = np.zeros((1, self._width(length)), np.int32)
        for position in range(int(limits[0])):
            last, cache = self._next(params, context, cache, last, given, made, ids, np.int32(position))
            token = int(last[0])
            made[0, position] = token
            yield token
            if token == self._config.eos_id:
                return

    def check_length(self, length: int, name: str) -> None:
        """Raises ValueError, with its name, for a source or prompt without tokens or with too many."""
        if not 1 <= length <= self._config.max_length:
            raise ValueError(f"{name} has {length} tokens, the model takes 1 to {self._config.max_length}")
        if self._limit(length) < 1:
            raise ValueError(
                f"{name} has {length} tokens, and max_length={self._rules.max_length} leaves no room for "
                "more: say how many with max_new_tokens"
            )

    def _limit(self, length: int) -> int:
        """Tokens that the output of a sequence of ``length`` may have."""
        config = self._config
        room = config.max_length - (length - 1 if config.is_decoder_only else 0)  # the last is not fed back
        longest = self._rules.max_length
        if longest is not None:
            room = min(room, longest - (length if config.is_decoder_only else 1))
        return min(self._output_length(length), room)

    def _width(self, length: int) -> int:
        """Of the outputs of sequences padded to ``length``, in tokens."""
        return min(self._output_length(length), self._config.max_length)

    def _batch(
        self, rows: int, length: int, sequences: Sequence[Tokens], numbers: Sequence[int]
    ) -> tuple[Any, ...]:
        """Padded tokens, their number in each row, how many its output may have, the sequences' numbers."""
        tokens = np.full((rows, length), self._config.pad_id, np.int32)
        lengths = np.zeros(rows, np.int32)
        limits = np.zeros(rows, np.int32)  # nothing for rows that only fill up the batch
        ids = np.zeros(rows, np.int32)
        for row, (sequence, number) in enumerate(zip(sequences, numbers, strict=True)):
            start = length - len(sequence) if self._config.is_decoder_only else 0
            tokens[row, start : start + len(sequence)] = sequence
            lengths[row], limits[row], ids[row] = len(sequence), self._limit(len(sequence)), number
        if self._mesh is None:
            return tokens, lengths, limits, ids
        parts = partitioning.num_batch_shards(self._mesh)
        rows_spec = PartitionSpec(partitioning.BATCH_AXES if rows % parts == 0 else None)
        sharding = NamedSharding(self._mesh, rows_spec)
        return tuple(jax.device_put(array, sharding) for array in (tokens, lengths, limits, ids))

    def _start(
        self, params: PyTree, inputs: jax.Array, lengths: jax.Array
    ) -> tuple[EncodedContext | PromptContext, DecoderCache, jax.Array, int]:
        """What decoding steps are given, the cache, the token before the first, the width of outputs."""
        config, variables = self._config, {"params": params}
        model: Any = build(config)
        rows, length = inputs.shape
        if config.is_decoder_only:
            width = min(self._output_length(length), config.max_length)
            prompt = PromptContext(length - lengths)
            cache = model.init_cache(rows, length - 1 + width)
            if length > 1:
                arguments = (variables, inputs[:, :-1], prompt, cache)
                cache = model.apply(*arguments, method="read_prompt")
            return prompt, cache, inputs[:, -1], width
        segments = (jnp.arange(length)[None, :] < lengths[:, None]).astype(jnp.int32)
        context = model.apply(variables, inputs, segments, method="encode_context")
        width = self._width(length)
        start = jnp.full(rows, config.decoder_start_id, jnp.int32)
        return context, model.init_cache(rows, width), start, width

    def _step(self, params: PyTree, context: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        model: Any = build(self._config)
        logits, cache = model.apply({"params": params}, tokens, context, cache, method="decode_step")
        # The model's vocabulary may be larger than the tokenizer's: what it has no text for must not come.
        has_text = jnp.arange(self._config.vocab_size)[None, :] < self._num_tokens
        return jnp.where(has_text, logits, -jnp.inf), cache

    def _given(self, inputs: jax.Array, lengths: jax.Array, limits: jax.Array) -> Given:
        """What stands before the outputs."""
        if self._config.is_decoder_only:
            return Given(inputs, lengths, limits)
        start = jnp.full((len(inputs), 1), self._config.decoder_start_id, jnp.int32)
        return Given(start, jnp.ones_like(lengths), limits)

    def _constrain(self, given: Given) -> Constrain:
        constraints = self._rules.constraints
        return lambda logits, tokens, position: constraints.apply(
            logits, tokens, position, given, self._config.eos_id
        )

    def _decode_batch(
        self, params: PyTree, inputs: jax.Array, lengths: jax.Array, limits: jax.Array, ids: jax.Array
    ) -> Decoded:
        """The best or the drawn output of each row."""
        config, settings = self._config, self._settings
        context, cache, start, width = self._start(params, inputs, lengths)
        layer_axis = 1 if config.scan_layers else 0
        ends: dict[str, Any] = dict(
            max_length=width, max_lengths=limits, eos_id=config.eos_id, pad_id=config.pad_id
        )
        given = self._given(inputs, lengths, limits)
        if settings.temperature == 0:
            if isinstance(context, EncodedContext):
                layers = repeat_rows(context.layers, settings.beam_size, layer_axis)
                context = EncodedContext(layers, repeat_rows(context.segments, settings.beam_size))
            else:
                context = repeat_rows(context, settings.beam_size)
            given = repeat_rows(given, settings.beam_size)
            found = beam_search(
                partial(self._step, params, context),
                cache,
                start,
                beam_size=settings.beam_size,
                length_penalty=settings.length_penalty,
                rule=self._rules.beams,
                constrain=self._constrain(given),
                cache_axis=layer_axis,
                **ends,
            )
            return Decoded(*(array[:, 0] for array in found))
        return sample(
            partial(self._step, params, context),
            cache,
            start,
            jax.random.key(settings.seed),
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            top_p=settings.top_p,
            row_ids=ids,
            constrain=self._constrain(given),
            **ends,
        )

    def _begin_row(
        self, params: PyTree, inputs: jax.Array, lengths: jax.Array, limits: jax.Array
    ) -> tuple[EncodedContext | PromptContext, DecoderCache, jax.Array, Given]:
        return *self._start(params, inputs, lengths)[:3], self._given(inputs, lengths, limits)

    def _next_token(
        self,
        params: PyTree,
        context: Any,
        cache: Any,
        last: jax.Array,
        given: Given,
        made: jax.Array,
        ids: jax.Array,
        position: jax.Array,
    ) -> tuple[jax.Array, Any]:
        settings = self._settings
        logits, cache = self._step(params, context, last, cache)
        logits = self._constrain(given)(logits.astype(jnp.float32), made, position)
        if settings.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache
        drawn = draw_tokens(
            logits,
            jax.random.key(settings.seed),
            ids,
            position,
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            top_p=settings.top_p,
        )
        return drawn.astype(jnp.int32), cache
