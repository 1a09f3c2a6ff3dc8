"""Decodes batches of token sequences: the sources of an encoder-decoder, the prompts of a decoder-only model.

``transformer_jax.inference.generation`` does the same for texts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32

from transformer_jax.data import batches_by_length, pad_batch
from transformer_jax.data.padding import padded_length, power_of_two
from transformer_jax.decoding.beams import beam_search, repeat_rows
from transformer_jax.decoding.constraints import Given
from transformer_jax.decoding.loop import Constrain, Decoded, LoopState, Step, start_loop
from transformer_jax.decoding.sampling import draw_tokens
from transformer_jax.decoding.search import Choose, most_probable, next_tokens, search_tokens
from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules
from transformer_jax.models import TransformerConfig, build, evaluation_keys
from transformer_jax.models.cache import Context, DecoderCache, PromptContext, repeated
from transformer_jax.sharding import partitioning
from transformer_jax.types import Array, PyTree

Tokens = Int32[np.ndarray, "_"]


class Rows(NamedTuple):
    """Contains a padded batch to decode, N rows. Rows that only fill up the batch have the limit 0.

    Attributes:
      sources: tokens of the encoder, padded at the end; None if there is no encoder.
      source_segments: 0 on padding, else 1; None if there is no encoder.
      prefixes: the decoder's first tokens, padded at the beginning: a prompt, or the start token and a
        prompt.
      prefix_lengths: numbers of tokens in ``prefixes``.
      limits: maximum numbers of tokens of the outputs.
      ids: numbers of the sequences; random draws depend on them.
    """

    sources: Any  # (N, S)
    source_segments: Any  # (N, S)
    prefixes: Any  # (N, P)
    prefix_lengths: Any  # (N,)
    limits: Any  # (N,)
    ids: Any  # (N,)

    @property
    def given(self) -> Given:
        """What precedes the outputs."""
        return Given(self.prefixes, self.prefix_lengths, self.limits)


def padding_may_come(config: TransformerConfig) -> bool:
    """Returns whether outputs may contain ``config.pad_id``: in a decoder-only model, or if it is also eos.

    Elsewhere the logit of padding is untrained, and published MarianMT models give it the highest one.
    """
    return config.is_decoder_only or config.pad_id == config.eos_id


class Generator:
    """Decodes by beam search, greedy search or sampling; compiles once for each padded length and row count.

    Sources are padded at the end, and prompts at the beginning. ``batches_by_length`` makes the batches, so
    the number of compiled shapes is bounded.

    Args:
      config: of a model with a decoder.
      settings: how to search or sample.
      num_tokens: number of tokens of the tokenizer. The model's further tokens have no text and are
        forbidden.
      output_length: maximum number of tokens of an output, eos included, as a function of the length of its
        source or prompt.
      batch_size: maximum number of sequences that are decoded at once.
      rules: what the settings leave open.
      mesh: the devices to compute on, with rows over its data axes; by default where the parameters are.

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
        rules.check(config.vocab_size)
        banned = () if padding_may_come(config) else (config.pad_id,)
        banned = tuple(dict.fromkeys((*rules.constraints.banned_ids, *banned)))
        constraints = dataclasses.replace(rules.constraints, banned_ids=banned)
        self._rules = dataclasses.replace(rules, constraints=constraints)
        replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._decode = jax.jit(self._decode_rows, static_argnums=2, out_shardings=replicated)
        self._begin = jax.jit(self._begin_row, static_argnums=2)
        self._next = jax.jit(self._next_token)

    @property
    def decoder_prompt(self) -> tuple[int, ...]:
        """The tokens that outputs of an encoder-decoder continue by default."""
        return self._rules.decoder_prompt

    def generate(
        self,
        params: PyTree,
        sequences: Sequence[Tokens],
        numbers: Sequence[int] | None = None,
        decoder_prompts: Sequence[Tokens] | None = None,
    ) -> list[Tokens]:
        """Decodes the best or a randomly drawn output of each source, or continuation of each prompt, in
        order.

        Args:
          params: of the model.
          sequences: sources or prompts, each of 1 to ``max_length`` tokens of the stack that
            reads them.
          numbers: numbers of the sequences, by default 0, 1, 2, ...; random draws depend on them and the
            seed.
          decoder_prompts: for each source the tokens that its output continues, after the start token. By
            default ``rules.decoder_prompt`` for all. They may have different lengths, also 0.

        Returns:
          Token ids, with eos if it was decoded, without the prompt.

        Raises:
          ValueError: a sequence or prompt is empty or too long, and the message names it; or a decoder-only
            model is given ``decoder_prompts``.
        """
        numbers = range(len(sequences)) if numbers is None else numbers
        prefixes = self._prefixes(sequences, decoder_prompts)
        lengths = [len(sequence) for sequence in sequences]
        for length, prefix, number in zip(lengths, prefixes, numbers, strict=True):
            self._check(length, len(prefix), f"sequence {number + 1}")
        outputs: list[Tokens] = [np.zeros(0, np.int32)] * len(sequences)
        # Outputs of sequences of one length end at about the same time.
        for rows, length, chunk in batches_by_length(
            lengths, self._batch_size, self._config.inputs_max_length
        ):
            parts = [sequences[i] for i in chunk], [prefixes[i] for i in chunk], [numbers[i] for i in chunk]
            batch = self._batch(rows, length, *parts)
            decoded = self._decode(params, batch, self._width(length))
            tokens, ends = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
            for row, i in enumerate(chunk):
                outputs[i] = tokens[row, : ends[row]]
        return outputs

    def stream(
        self, params: PyTree, sequence: Tokens, number: int = 0, decoder_prompt: Tokens | None = None
    ) -> Iterator[int]:
        """Yields each token of one output when it is chosen, greedily or at random, as ``generate`` would.

        Raises:
          ValueError: as ``generate``; or the settings ask for beam search, whose first token is known only at
            the end.
        """
        (prefix,) = self._prefixes([sequence], None if decoder_prompt is None else [decoder_prompt])
        self._check(len(sequence), len(prefix), f"sequence {number + 1}")
        if self._settings.temperature == 0 and self._settings.beam_size > 1:
            raise ValueError(
                f"beam_size={self._settings.beam_size} cannot stream, because beam search knows the "
                "first token only at the end: set beam_size=1, or a temperature above 0"
            )
        return self._stream(params, sequence, prefix, number)

    def _stream(self, params: PyTree, sequence: Tokens, prefix: Tokens, number: int) -> Iterator[int]:
        length = padded_length(len(sequence), self._config.inputs_max_length)
        rows = self._batch(1, length, [sequence], [prefix], [number])
        context, state = self._begin(params, rows, self._width(length))
        while True:
            state = self._next(params, context, rows, state)
            if np.isneginf(state.live.log_probs[0]):  # every token is forbidden
                return
            yield int(state.last[0])
            if state.done[0]:
                return

    def check_length(self, length: int, name: str, prompt_length: int | None = None) -> None:
        """Raises ValueError if a source or prompt has no tokens, too many, or leaves no room for an output.

        Args:
          length: number of its tokens.
          name: how the message calls it.
          prompt_length: tokens of the decoder prompt of a source; None is that of the rules.
        """
        if self._config.is_decoder_only:
            prefix_length = length
        else:
            prefix_length = 1 + (len(self._rules.decoder_prompt) if prompt_length is None else prompt_length)
        self._check(length, prefix_length, name)

    def _check(self, length: int, prefix_length: int, name: str) -> None:
        config = self._config
        if not 1 <= length <= self._config.inputs_max_length:
            raise ValueError(
                f"{name} has {length} tokens, the model takes 1 to {self._config.inputs_max_length}"
            )
        if prefix_length > self._config.targets_max_length:
            raise ValueError(
                f"the decoder prompt of {name} has {prefix_length - 1} tokens, the model takes at most "
                f"{self._config.targets_max_length - 1}"
            )
        if self._limit(length, prefix_length) < 1:
            tokens = length if config.is_decoder_only else prefix_length
            which = "" if config.is_decoder_only else "the decoder prompt of "
            raise ValueError(
                f"{which}{name} has {tokens} tokens, and max_length={self._rules.max_length} leaves no room "
                "for more: say how many with max_new_tokens"
            )

    def _prefixes(
        self, sequences: Sequence[Tokens], decoder_prompts: Sequence[Tokens] | None
    ) -> Sequence[Tokens]:
        """Returns the decoder's first tokens for each sequence."""
        if self._config.is_decoder_only:
            if decoder_prompts is not None:
                raise ValueError(
                    "decoder prompts are for models with an encoder and a decoder; a decoder-only model "
                    "continues the sequence itself, so put the tokens there"
                )
            return sequences
        if decoder_prompts is None:
            decoder_prompts = [np.array(self._rules.decoder_prompt, np.int32)] * len(sequences)
        if len(decoder_prompts) != len(sequences):
            raise ValueError(
                f"{len(decoder_prompts)} decoder prompts do not fit {len(sequences)} sources: give one "
                "for each"
            )
        return [np.append(np.int32(self._config.decoder_start_id), prompt) for prompt in decoder_prompts]

    def _limit(self, length: int, prefix_length: int) -> int:
        """Returns the maximum number of tokens of the output of a sequence of ``length`` tokens."""
        room = self._config.targets_max_length - (prefix_length - 1)  # the last token is not fed back
        if self._rules.max_length is not None:
            room = min(room, self._rules.max_length - prefix_length)
        return min(self._output_length(length), room)

    def _width(self, length: int) -> int:
        """Returns the width of the outputs of sequences that are padded to ``length``."""
        return min(self._output_length(length), self._config.targets_max_length)

    def _batch(
        self,
        num_rows: int,
        length: int,
        sequences: Sequence[Tokens],
        prefixes: Sequence[Tokens],
        numbers: Sequence[int],
    ) -> Rows:
        """Pads sequences to (num_rows, length), and their prefixes to a power of two, or as the sequences."""
        sizes = np.array([(len(s), len(p)) for s, p in zip(sequences, prefixes, strict=True)])
        limits, ids = np.zeros((2, num_rows), np.int32)
        limits[: len(sequences)] = [self._limit(*size) for size in sizes.tolist()]
        ids[: len(sequences)] = numbers
        sources = segments = None
        if not self._config.is_decoder_only:
            sources, segments = self._padded(num_rows, length, sequences)
            length = min(power_of_two(int(sizes[:, 1].max())), self._config.targets_max_length)
        padded, real = self._padded(num_rows, length, prefixes, on_the_left=True)
        rows = Rows(sources, segments, padded, real.sum(axis=1, dtype=np.int32), limits, ids)
        if self._mesh is None:
            return rows
        parts = partitioning.num_batch_shards(self._mesh)
        spec = PartitionSpec(partitioning.BATCH_AXES if num_rows % parts == 0 else None)
        return jax.device_put(rows, NamedSharding(self._mesh, spec))

    def _padded(
        self, num_rows: int, length: int, sequences: Sequence[Tokens], on_the_left: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns padded tokens, and their segments."""
        examples = [[{"inputs": sequence}] for sequence in sequences]
        examples += [[]] * (num_rows - len(sequences))
        batch = pad_batch(examples, length, pad_id=self._config.pad_id, on_the_left=on_the_left)
        return batch["inputs"], batch["inputs_segments"]

    def _start(self, params: PyTree, rows: Rows, width: int) -> tuple[Context, DecoderCache, jax.Array]:
        """Returns what every decoding step is given, the cache, and the token before the first one."""
        apply = self._apply(params)
        num_rows, length = rows.prefixes.shape
        padding = length - rows.prefix_lengths
        if rows.sources is None:
            context: Any = PromptContext(padding)
        else:
            context = apply(rows.sources, rows.source_segments, method="encode_context")
            if length > 1:
                context = context.replace(padding=padding)
        cache = cast(Any, build(self._config)).init_cache(num_rows, length - 1 + width)
        if length > 1:
            cache = apply(rows.prefixes[:, :-1], context, cache, method="read_prompt")
        return context, cache, rows.prefixes[:, -1]

    def _apply(self, params: PyTree) -> Callable[..., Any]:
        """Returns ``apply`` of the model, given its parameters and the keys of its random streams."""
        return partial(
            cast(Any, build(self._config)).apply, {"params": params}, rngs=evaluation_keys(self._config)
        )

    def _step(self, params: PyTree, context: Any) -> Step:
        apply = self._apply(params)

        def step(tokens: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
            logits, cache = apply(tokens, context, cache, method="decode_step")
            # The model's vocabulary may be larger than the tokenizer's. Tokens without a text are forbidden.
            has_text = jnp.arange(self._config.vocab_size)[None, :] < self._num_tokens
            return jnp.where(has_text, logits, -jnp.inf), cache

        return step

    def _constrain(self, given: Given) -> Constrain:
        constraints = self._rules.constraints
        return lambda logits, tokens, position: constraints.apply(
            logits, tokens, position, given, self._config.eos_id
        )

    def _choose(self, ids: Array) -> Choose:
        """Returns how a next token is chosen, which is the same whether tokens are streamed or not."""
        settings = self._settings
        if settings.temperature == 0:
            return most_probable

        def draw(logits: jax.Array, position: jax.Array) -> jax.Array:
            return draw_tokens(
                logits,
                jax.random.key(settings.seed),
                jnp.asarray(ids),
                position,
                temperature=settings.temperature,
                top_k=settings.top_k or None,
                top_p=settings.top_p,
            )

        return draw

    def _decode_rows(self, params: PyTree, rows: Rows, width: int) -> Decoded:
        """Returns the best or the drawn output of each row."""
        config, settings = self._config, self._settings
        context, cache, start_ids = self._start(params, rows, width)
        if settings.temperature > 0 or settings.beam_size == 1:
            return search_tokens(
                self._step(params, context),
                start_loop(cache, start_ids, width, rows.limits),
                self._choose(rows.ids),
                config.eos_id,
                config.pad_id,
                self._constrain(rows.given),
            )
        hypotheses = beam_search(
            self._step(params, repeated(context, settings.beam_size)),
            cache,
            start_ids,
            beam_size=settings.beam_size,
            length_penalty=settings.length_penalty,
            max_length=width,
            max_lengths=rows.limits,
            eos_id=config.eos_id,
            pad_id=config.pad_id,
            rule=self._rules.beams,
            constrain=self._constrain(repeat_rows(rows.given, settings.beam_size)),
            cache_axis=cache.row_axis,
        )
        return Decoded(*(array[:, 0] for array in hypotheses))

    def _begin_row(self, params: PyTree, rows: Rows, width: int) -> tuple[Any, LoopState]:
        context, cache, start_ids = self._start(params, rows, width)
        return context, start_loop(cache, start_ids, width, rows.limits)

    def _next_token(self, params: PyTree, context: Any, rows: Rows, state: LoopState) -> LoopState:
        return next_tokens(
            self._step(params, context),
            state,
            self._choose(rows.ids),
            self._config.eos_id,
            self._constrain(rows.given),
        )
