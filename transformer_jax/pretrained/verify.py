"""Compares the outputs of a checkpoint in this library and in Hugging Face ``transformers``.

``python -m transformer_jax.pretrained verify FOLDER`` prints the differences as a table. PyTorch and
``transformers`` are imported inside functions, because the rest of the library does not need them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE
from transformer_jax.decoding.generator import Generator, padding_may_come
from transformer_jax.decoding.settings import OWN_RULES, DecodingSettings, TextRules
from transformer_jax.models import TransformerConfig, build, evaluation_keys
from transformer_jax.models.front_ends.tokens import draw_tokens
from transformer_jax.models.heads import HEADS, Output
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.preprocessors import read_preprocessor
from transformer_jax.types import PyTree

TOLERANCE = 1e-4
NUM_EXAMPLES = 3
MOST_TOKENS = 140  # per text; T5 treats all distances from 128 on alike, so this covers them
NEW_TOKENS = 8  # generated from each text
NUM_BEAMS = 4

_ENCODED = Output("encoder_last_hidden_state", True)  # of an encoder-decoder, beside its head's outputs

# The arguments of front ends, as ``transformers`` names them.
_THEIR_NAMES = {
    "inputs": "input_ids",
    "inputs_segments": "attention_mask",
    "inputs_types": "token_type_ids",
    "images": "pixel_values",
}

Arrays = dict[str, np.ndarray]


class VerifyError(ValueError):
    """The comparison cannot be made."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One output of the two implementations.

    Attributes:
      name: of the output in ``transformers``.
      shape: of the output.
      largest: largest absolute value that ``transformers`` computes.
      difference: largest absolute difference, padding aside. For greedy generation, it is how far the logit
        of our first differing token lies below the best one in ``transformers``; for beam search, by how much
        the scores of the two best texts differ in ``transformers``. It is 0 if the texts are equal.
      tolerance: largest ``difference`` that counts as equal.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float
    tolerance: float

    @property
    def is_same(self) -> bool:
        """Whether the difference is within the tolerance; False if the difference is NaN."""
        return self.difference <= self.tolerance


def compare(
    folder: CheckpointFolder,
    config: TransformerConfig,
    params: PyTree,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> list[Comparison]:
    """Runs a model and the one that ``transformers`` reads from the same folder, both in float32.

    Args:
      folder: a checkpoint that ``transformers`` reads.
      config, params: of the model that was read from it.
      tolerance: for the largest absolute difference of each output.
      seed: of the random input.

    Returns:
      One comparison for each output and, if there is a decoder, one of greedy generation and one of beam
      search.

    Raises:
      VerifyError: PyTorch or ``transformers`` is not installed, cannot read the folder, or gives outputs of
        other shapes.
    """
    theirs = _their_model(folder, config)
    inputs = draw_inputs(config, np.random.default_rng(seed))
    preprocessor = read_preprocessor(folder, config)
    their_inputs = inputs if preprocessor is None else preprocessor.their_inputs(inputs)
    with jax.default_matmul_precision("highest"):  # accelerators otherwise round products to fewer bits
        found = _our_outputs(config, params, inputs)
    expected = _their_outputs(theirs, config, their_inputs)
    comparisons = []
    for name, of_tokens in _outputs(config):
        ours, other = found[name], expected[name]
        if ours.shape != other.shape:
            raise VerifyError(
                f"{name} has the shape {ours.shape} here, and {other.shape} in {type(theirs).__name__}"
            )
        side = "targets" if "targets" in inputs and name != _ENCODED.name else "inputs"
        real = inputs[f"{side}_segments"] == 1 if of_tokens and f"{side}_segments" in inputs else ...
        largest, difference = np.abs(other[real]).max(), np.abs(ours[real] - other[real]).max()
        comparisons.append(Comparison(name, ours.shape, float(largest), float(difference), tolerance))
    if config.num_decoder_layers:
        comparisons.append(_compare_greedy(theirs, config, params, inputs, tolerance))
        comparisons.append(_compare_beams(theirs, config, params, inputs, tolerance))
    return comparisons


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns a table with a line for each output."""
    rows = [("output", "shape", "largest number", "largest difference", "tolerance", "")]
    rows += [
        (
            one.name,
            "x".join(map(str, one.shape)),
            f"{one.largest:.4g}",
            f"{one.difference:.2g}",
            f"{one.tolerance:.2g}",
            "ok" if one.is_same else "DIFFERS",
        )
        for one in comparisons
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:5], strict=True)]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)


def draw_inputs(config: TransformerConfig, rng: np.random.Generator) -> Arrays:
    """Returns random inputs of our model, rows of several lengths if they may have several."""
    room = config.batch_max_length - (NEW_TOKENS if config.is_decoder_only else 0)
    longest = max(1, min(MOST_TOKENS, room))
    lengths = [max(1, longest * (i + 1) // NUM_EXAMPLES) for i in range(NUM_EXAMPLES)]
    inputs = config.front_end.draw_inputs(config, rng, lengths)
    if not config.is_encoder_only and not config.is_decoder_only:
        inputs |= draw_tokens(config, rng, lengths[::-1], "targets")  # a long one for a short source
    return inputs


def _outputs(config: TransformerConfig) -> tuple[Output, ...]:
    """Returns the outputs that are compared, in the order of our model."""
    has_both = not config.is_encoder_only and not config.is_decoder_only
    return (*((_ENCODED,) if has_both else ()), *HEADS[config.head].outputs)


def _our_outputs(config: TransformerConfig, params: PyTree, inputs: Mapping[str, np.ndarray]) -> Arrays:
    model: Any = build(config)

    def run(arguments: Mapping[str, np.ndarray], method: str) -> Any:
        def apply(params: PyTree, arguments: Mapping[str, Any]) -> Any:
            rngs = evaluation_keys(config)
            return model.apply({"params": params}, **arguments, method=method, rngs=rngs)

        return jax.jit(apply)(params, dict(arguments))

    outputs = list(HEADS[config.head].arrays(run(inputs, "__call__")))
    names = [name for name, _ in _outputs(config)]
    if names[0] == _ENCODED.name:
        sources = {name: array for name, array in inputs.items() if name in config.front_end.ARGUMENTS}
        outputs.insert(0, run(sources, "encode"))
    return dict(zip(names, map(np.asarray, outputs), strict=True))


def _imported() -> tuple[Any, Any]:
    """Returns the modules ``torch`` and ``transformers``; raises VerifyError if they are not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  # an extra: not in every environment
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise VerifyError(
            f"the comparison needs PyTorch and transformers ({error}): pip install '.[parity]' in a "
            "checkout, or pip install torch transformers"
        ) from error
    return torch, transformers


def _their_model(folder: CheckpointFolder, config: TransformerConfig) -> Any:
    torch, transformers = _imported()
    # The class is chosen by the tensors, because config.json of many BERTs names BertForMaskedLM, which lacks
    # a part of the pre-training head.
    classes = folder.checkpoint.classes[folder.content["model_type"]]
    architecture = getattr(transformers, classes[config.head])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = architecture.from_pretrained(
            folder.path,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        kind = architecture.__name__
        raise VerifyError(f"transformers cannot read {folder.path} as {kind}: {reason}") from error
    return model.eval()


def _their_outputs(model: Any, config: TransformerConfig, inputs: Mapping[str, np.ndarray]) -> Arrays:
    torch, _ = _imported()
    arguments = {
        _THEIR_NAMES[name]: array for name, array in inputs.items() if name in config.front_end.ARGUMENTS
    }
    if "pixel_values" in arguments:  # their images have the channels first
        arguments["pixel_values"] = arguments["pixel_values"].transpose(0, 3, 1, 2)
    if "targets" in inputs:  # ours are shifted by the model
        start = np.full((NUM_EXAMPLES, 1), config.decoder_start_id, np.int32)
        shifted = np.concatenate([start, inputs["targets"][:, :-1]], axis=1)
        arguments |= {"decoder_input_ids": shifted, "decoder_attention_mask": inputs["targets_segments"]}
    tensors = {name: torch.tensor(array) for name, array in arguments.items()}
    tensors = {name: t.long() if t.dtype == torch.int32 else t for name, t in tensors.items()}
    with torch.no_grad():
        result = model(**tensors, return_dict=True)
    return {name: result[name].numpy() for name, _ in _outputs(config)}


def _compare_greedy(
    theirs: Any,
    config: TransformerConfig,
    params: PyTree,
    inputs: Mapping[str, np.ndarray],
    tolerance: float,
) -> Comparison:
    """Compares greedy generation, ours in one padded batch and theirs one text at a time."""
    texts = _texts(inputs)
    found = _our_texts(config, params, texts, DecodingSettings(beam_size=1), OWN_RULES)
    largest, difference = 0.0, 0.0
    for text, tokens in zip(texts, found, strict=True):
        logits = _their_greedy_logits(theirs, config, text)
        largest = _larger(largest, float(np.abs(logits).max()))
        if not padding_may_come(config):
            logits[:, config.pad_id] = -np.inf
        best = logits.argmax(axis=-1)
        shared = min(len(tokens), len(best))
        parted = np.flatnonzero(tokens[:shared] != best[:shared])
        if parted.size:
            place = parted[0]  # later logits are of different texts
            difference = _larger(difference, float(logits[place].max() - logits[place, tokens[place]]))
        elif len(tokens) != len(best):
            difference = _larger(difference, float("inf"))
    name = f"greedy, {NEW_TOKENS} tokens"
    # Two logits that nearly tie may each be off by the tolerance.
    return Comparison(name, (NUM_EXAMPLES, NEW_TOKENS), largest, difference, 2 * tolerance)


def _compare_beams(
    theirs: Any,
    config: TransformerConfig,
    params: PyTree,
    inputs: Mapping[str, np.ndarray],
    tolerance: float,
) -> Comparison:
    """Compares the best of four beams by the rules of ``transformers``, batched as for greedy generation."""
    texts = _texts(inputs)
    settings = DecodingSettings(beam_size=NUM_BEAMS, length_penalty=1.0)
    found = _our_texts(config, params, texts, settings, TextRules(TRANSFORMERS_RULE))
    largest, difference = 0.0, 0.0
    for text, tokens in zip(texts, found, strict=True):
        made = _generated(theirs, config, text, num_beams=NUM_BEAMS, output_scores=True)
        other = made.sequences[0, 1 if not config.is_decoder_only else len(text) :].numpy()
        score = float(made.sequences_scores[0])
        largest = _larger(largest, abs(score))
        if tokens.tolist() != other.tolist():
            ours = _their_score(theirs, config, text, tokens) if len(tokens) else -float("inf")
            difference = _larger(difference, abs(score - ours))
    name = f"{NUM_BEAMS} beams, {NEW_TOKENS} tokens"
    # Two scores that nearly tie may each be off by the tolerance.
    return Comparison(name, (NUM_EXAMPLES, NEW_TOKENS), largest, difference, 2 * tolerance)


def _larger(first: float, second: float) -> float:
    """Returns the larger number, or NaN if one is NaN, which ``max`` may miss."""
    return float(np.maximum(first, second))


def _texts(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    rows = zip(inputs["inputs"], inputs["inputs_segments"], strict=True)
    return [tokens[segments == 1] for tokens, segments in rows]


def _our_texts(
    config: TransformerConfig,
    params: PyTree,
    texts: Sequence[np.ndarray],
    settings: DecodingSettings,
    rules: TextRules,
) -> list[np.ndarray]:
    generator = Generator(
        config,
        settings,
        config.vocab_size,
        output_length=lambda _: NEW_TOKENS,
        batch_size=NUM_EXAMPLES,
        rules=rules,
    )
    with jax.default_matmul_precision("highest"):
        return generator.generate(params, texts)


def _their_score(model: Any, config: TransformerConfig, text: np.ndarray, tokens: np.ndarray) -> float:
    """Returns the mean log-probability of ``tokens`` in their model."""
    torch, _ = _imported()
    given = torch.tensor(text[None]).long()
    before = [*text] if config.is_decoder_only else [config.decoder_start_id]
    so_far = torch.tensor([[*before, *tokens[:-1]]]).long()
    arguments = {"input_ids": so_far}
    if not config.is_decoder_only:
        arguments = {"input_ids": given, "decoder_input_ids": so_far}
    with torch.no_grad():
        logits = model(**arguments).logits[0, -len(tokens) :]
    log_probs = logits.log_softmax(-1).numpy()
    return float(log_probs[np.arange(len(tokens)), tokens].mean())


def _their_greedy_logits(model: Any, config: TransformerConfig, text: np.ndarray) -> np.ndarray:
    """Returns the logits (tokens, V) from which each token was chosen."""
    torch, _ = _imported()
    return torch.cat(_generated(model, config, text, num_beams=1, output_logits=True).logits).numpy()


def _generated(model: Any, config: TransformerConfig, text: np.ndarray, **more: Any) -> Any:
    """Returns what their ``generate`` returns for a text with these settings, without the checkpoint's."""
    torch, transformers = _imported()
    # Padding is suppressed as it is in this library.
    settings = transformers.GenerationConfig(
        max_new_tokens=min(NEW_TOKENS, config.targets_max_length),
        do_sample=False,
        eos_token_id=config.eos_id,
        pad_token_id=config.pad_id,
        decoder_start_token_id=None if config.is_decoder_only else config.decoder_start_id,
        suppress_tokens=None if padding_may_come(config) else [config.pad_id],
        return_dict_in_generate=True,
        **more,
    )
    model.generation_config = settings  # otherwise the checkpoint's settings are added
    tokens = torch.tensor(text[None]).long()
    with torch.no_grad():
        return model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )
