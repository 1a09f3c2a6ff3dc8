"""What transformers' ``generate`` makes of a tiny model, checked against ``beam_reference``.

``generate(num_beams=K, early_stopping=True, length_penalty=0.0)`` keeps the beams of
``transformer_jax.decoding.beam_search`` (2 K candidates, the first K of which may end; done when K ended)
and ranks by log P, as ours with ``length_penalty=0``. Two things differ:

* at the limit transformers lets unfinished hypotheses compete with ended ones by score; ours come last. So
  the results must be the same for a text of which K hypotheses ended before the limit (``beam/same``);
* with a penalty transformers divides by ``length ** penalty``, ours by ``((5 + length) / 6) ** penalty``.

Both are tested here: the reference with transformers' limit and penalty finds what transformers does, always.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from tests.parity import beam_reference
from tests.parity.beam_reference import Beams, NextLogProbs, powered_length, wu_penalty

BEAM_SIZE = 4
LIMIT = 12  # tokens
ALPHA = 1.5  # of the penalized beams: enough to change the order of some
LEAST_MARGIN = 1e-3
Arrays = dict[str, np.ndarray]


def decode(model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray]) -> Arrays | None:
    """All that a model decodes, as it is stored; None where that is not worth comparing.

    It is where some texts end and some do not, with three lengths at least; where some fill their beams and
    some do not; and where no decision hangs on a difference below ``LEAST_MARGIN``, and padding never comes.

    Raises:
      RuntimeError: transformers decodes by other rules than the module's docstring says.
    """
    pad_id, eos_id = padding(model.config), model.config.eos_token_id
    found = greedy(model, inputs, pad_id)
    if not worth_comparing(found, eos_id, pad_id):
        return None
    texts = next_log_probs_of(model, inputs)
    ours = [search(text, eos_id, wu_penalty(0.0)) for text in texts]
    penalized = [search(text, eos_id, wu_penalty(ALPHA)) for text in texts]
    filled = np.array([beams.filled for beams in ours], np.int32)
    if filled.all() or not filled.any() or min(b.margin for b in ours + penalized) < LEAST_MARGIN:
        return None
    theirs = beams_of(model, inputs, pad_id, 0.0)
    for power in (0.0, 1.0):
        rule = [search(text, eos_id, powered_length(power), unfinished_compete=True) for text in texts]
        if min(beams.margin for beams in rule) < LEAST_MARGIN:
            return None
        check_same(packed(rule, pad_id), theirs if power == 0 else beams_of(model, inputs, pad_id, power))
    check_same(packed(ours, pad_id), theirs, rows=filled == 1)
    arrays = {f"greedy/{key}": array for key, array in found.items() if key != "margin"}
    arrays |= {f"beam/{key}": array for key, array in (theirs | {"same": filled}).items()}
    for name, beams in (("beam_reference", ours), ("beam_reference_penalized", penalized)):
        arrays |= {f"{name}/{key}": array for key, array in packed(beams, pad_id).items()}
    if any((arrays[f"{kind}/tokens"] == pad_id).sum() != padded_places(arrays, kind) for kind in KINDS):
        return None
    return arrays | {"decoding": np.array(json.dumps(settings(model.config), sort_keys=True))}


KINDS = ("greedy", "beam", "beam_reference", "beam_reference_penalized")


def settings(config: Any) -> dict[str, Any]:
    """What ``decoding`` holds: arguments of ``generate`` for beams, and of our reference."""
    return {
        "max_new_tokens": LIMIT,
        "num_beams": BEAM_SIZE,
        "num_return_sequences": BEAM_SIZE,
        "early_stopping": True,
        "length_penalty": 0.0,
        "penalized_alpha": ALPHA,
        "pad_token_id": padding(config),
        "eos_token_id": config.eos_token_id,
        "decoder_start_token_id": getattr(config, "decoder_start_token_id", None),
    }


def padding(config: Any) -> int:
    return 0 if config.pad_token_id is None else config.pad_token_id  # GPT-2 has none


def worth_comparing(found: Arrays, eos_id: int, pad_id: int) -> bool:
    lengths, tokens = found["lengths"], found["tokens"]
    ends = (tokens == eos_id).any(1)
    varied = len(np.unique(lengths)) >= 3 and lengths.min() >= 2 and len(np.unique(tokens)) >= 8
    return bool(ends.any() and not ends.all() and varied and found["margin"] > LEAST_MARGIN)


def padded_places(arrays: Arrays, kind: str) -> int:
    return int((LIMIT - arrays[f"{kind}/lengths"]).sum())


def generate(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], pad_id: int, **more: Any
) -> Any:
    settings = transformers.GenerationConfig(
        max_new_tokens=LIMIT,
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=pad_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        return_dict_in_generate=True,
        **more,
    )
    model.generation_config = settings  # or what the model's own asks for (a forced eos) would be mixed in
    prompt = {key: torch.from_numpy(inputs[key]).long() for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.generate(**prompt, generation_config=settings)


def new_tokens(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], sequences: Any
) -> Arrays:
    """Tokens without start token or prompt, int32 (rows, LIMIT), and lengths (rows,)."""
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    tokens = sequences[:, start:].numpy().astype(np.int32)
    tokens = np.pad(tokens, ((0, 0), (0, LIMIT - tokens.shape[1])), constant_values=padding(model.config))
    ends = tokens == model.config.eos_token_id
    lengths = np.where(ends.any(1), ends.argmax(1) + 1, LIMIT).astype(np.int32)
    # transformers fills up beams with eos where the padding token is 0.
    tokens = np.where(np.arange(LIMIT)[None, :] < lengths[:, None], tokens, np.int32(padding(model.config)))
    return {"tokens": tokens, "lengths": lengths}


def greedy(model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], pad_id: int) -> Arrays:
    out = generate(model, inputs, pad_id, output_logits=True)
    found = new_tokens(model, inputs, out.sequences)
    logits = torch.stack(out.logits, dim=1)
    logits = torch.nn.functional.pad(logits, (0, 0, 0, LIMIT - logits.shape[1]))
    real = np.arange(LIMIT)[None, :] < found["lengths"][:, None]
    best = logits.sort(-1, descending=True).values.numpy()
    margin = (best[..., 0] - best[..., 1])[real].min()
    chosen = torch.from_numpy(found["tokens"]).long()[..., None]
    log_probs = logits.log_softmax(-1).gather(-1, chosen)[..., 0].numpy()
    return found | {
        "logits": logits.numpy() * real[..., None].astype(np.float32),
        "log_probs": (log_probs * real).sum(1).astype(np.float32),
        "margin": margin,
    }


def beams_of(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], pad_id: int, power: float
) -> Arrays:
    """What transformers finds: tokens (B, BEAM_SIZE, LIMIT), lengths, log_probs and scores (B, BEAM_SIZE)."""
    out = generate(
        model,
        inputs,
        pad_id,
        num_beams=BEAM_SIZE,
        num_return_sequences=BEAM_SIZE,
        early_stopping=True,
        length_penalty=power,
        output_scores=True,
    )
    found = new_tokens(model, inputs, out.sequences)
    scores = out.sequences_scores.numpy()
    found |= {"scores": scores, "log_probs": scores * found["lengths"].astype(np.float32) ** power}
    return {key: array.reshape(-1, BEAM_SIZE, *array.shape[1:]) for key, array in found.items()}


def search(text: NextLogProbs, eos_id: int, penalty: Callable[[int], float], **more: bool) -> Beams:
    return beam_reference.beam_search(
        text, beam_size=BEAM_SIZE, limit=LIMIT, eos_id=eos_id, penalty=penalty, **more
    )


def next_log_probs_of(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray]
) -> list[NextLogProbs]:
    """For each text alone, unpadded, a function that scores continuations by whole forward passes."""

    def of_text(prompt: list[int]) -> NextLogProbs:
        start = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else prompt

        @torch.no_grad()
        def next_log_probs(texts: list[tuple[int, ...]]) -> np.ndarray:
            ids = torch.tensor([[*start, *text] for text in texts])
            if model.config.is_encoder_decoder:
                sources = torch.tensor([prompt] * len(texts))
                logits = model(input_ids=sources, decoder_input_ids=ids).logits
            else:
                logits = model(input_ids=ids).logits
            return logits[:, -1].double().log_softmax(-1).numpy()

        return next_log_probs

    ids, mask = inputs["input_ids"], inputs["attention_mask"] == 1
    return [of_text(row[real].tolist()) for row, real in zip(ids, mask, strict=True)]


def packed(beams: list[Beams], pad_id: int) -> Arrays:
    """The reference's results laid out as ``beams_of`` lays out transformers'."""
    tokens = np.full((len(beams), BEAM_SIZE, LIMIT), pad_id, np.int32)
    for row, text in enumerate(beams):
        for rank, hypothesis in enumerate(text.hypotheses):
            tokens[row, rank, : len(hypothesis.tokens)] = hypothesis.tokens
    hypotheses = [text.hypotheses for text in beams]
    return {
        "tokens": tokens,
        "lengths": np.array([[len(h.tokens) for h in row] for row in hypotheses], np.int32),
        "scores": np.array([[h.score for h in row] for row in hypotheses], np.float32),
        "log_probs": np.array([[h.log_prob for h in row] for row in hypotheses], np.float32),
    }


def check_same(ours: Arrays, theirs: Arrays, rows: Any = slice(None)) -> None:
    for name in ("tokens", "lengths"):
        if not np.array_equal(ours[name][rows], theirs[name][rows]):
            raise RuntimeError(f"{name} of the reference: {ours[name]}, of transformers: {theirs[name]}")
    for name in ("scores", "log_probs"):
        if not np.allclose(ours[name][rows], theirs[name][rows], rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"{name} of the reference: {ours[name]}, of transformers: {theirs[name]}")
