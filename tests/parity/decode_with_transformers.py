"""What transformers' ``generate`` makes of a tiny model, checked against ``beam_reference``.

``generate(num_beams=K)`` keeps the beams of ``transformer_jax.decoding.beam_search``: 2 K candidates, the
first K of which may end. By its own rule it differs from that of runs here in three things:

* at the limit transformers lets unfinished hypotheses compete with ended ones by score; there they come last;
* with a penalty transformers divides by ``length ** penalty``, there it is ``((5 + length) / 6) ** penalty``;
* a text of which K hypotheses ended is done with ``early_stopping=True``, as there; by default it goes on
  until its best unfinished hypothesis, scored as it stands, is not above the worst of those.

All three are tested here: the reference by transformers' rule finds what transformers does, always.
"""

import json
import tempfile
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
LEAST_MARGIN_OF_MEANS = LEAST_MARGIN / LIMIT  # of scores that are means over tokens, as are their errors
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
    found_by: dict[tuple[float, bool], Arrays] = {}
    for power, stops, least in (
        (0.0, True, LEAST_MARGIN),
        (1.0, True, LEAST_MARGIN),
        (1.0, False, LEAST_MARGIN_OF_MEANS),
    ):
        rule = [
            search(text, eos_id, powered_length(power), unfinished_compete=True, early_stopping=stops)
            for text in texts
        ]
        if min(beams.margin for beams in rule) < least:
            return None
        found_by[power, stops] = beams_of(model, inputs, pad_id, power, early_stopping=stops)
        check_same(packed(rule, pad_id), found_by[power, stops])
    check_same(packed(ours, pad_id), found_by[0.0, True], rows=filled == 1)
    arrays = {f"greedy/{key}": array for key, array in found.items() if key != "margin"}
    results = {
        "beam": found_by[0.0, True],
        "beam_defaults": found_by[1.0, False],
        "beam_reference": packed(ours, pad_id),
        "beam_reference_penalized": packed(penalized, pad_id),
        "beam_ruled": ruled(model, inputs, pad_id),
        "folder_greedy": by_the_folder(model, inputs, 1),
        "folder_beam": by_the_folder(model, inputs, BEAM_SIZE),
    }
    arrays |= {f"{name}/{key}": array for name, result in results.items() for key, array in result.items()}
    if any((arrays[f"{kind}/tokens"] == pad_id).sum() != padded_places(arrays, kind) for kind in KINDS):
        return None
    return arrays | {"decoding": np.array(json.dumps(settings(model.config), sort_keys=True))}


KINDS = (
    *("greedy", "beam", "beam_defaults", "beam_reference", "beam_reference_penalized"),
    *("beam_ruled", "folder_greedy", "folder_beam"),
)


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
        "ruled": rules(config),
    }


def rules(config: Any) -> dict[str, Any]:
    """Arguments of ``generate`` for ``beam_ruled``: all at once that published checkpoints ask for."""
    found: dict[str, Any] = {
        "early_stopping": "never",
        "length_penalty": 2.0,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 4,
        "forced_eos_token_id": config.eos_token_id,
        "suppress_tokens": [3, 41],
        "renormalize_logits": True,
    }
    if config.is_encoder_decoder:
        found |= {"forced_bos_token_id": 9, "bad_words_ids": [[config.pad_token_id]]}
    return found


def ruled(model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], pad_id: int) -> Arrays:
    more = {"num_beams": BEAM_SIZE, "num_return_sequences": BEAM_SIZE} | rules(model.config)
    found = new_tokens(model, inputs, generate(model, inputs, pad_id, **more).sequences)
    return {key: array.reshape(-1, BEAM_SIZE, *array.shape[1:]) for key, array in found.items()}


def by_the_folder(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], num_beams: int
) -> Arrays:
    """The best output of each text where no more is said than how many beams and tokens."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        config = type(model.config).from_pretrained(folder)
    model.generation_config = transformers.GenerationConfig.from_model_config(config)
    more = {"pad_token_id": 0} if config.pad_token_id is None else {}
    prompt = {key: torch.from_numpy(inputs[key]).long() for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        made = model.generate(**prompt, max_new_tokens=LIMIT, num_beams=num_beams, **more)
    return new_tokens(model, inputs, made)


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
    model: transformers.PreTrainedModel,
    inputs: Mapping[str, np.ndarray],
    pad_id: int,
    power: float,
    early_stopping: bool = True,
) -> Arrays:
    """What transformers finds: tokens (B, BEAM_SIZE, LIMIT), lengths, log_probs and scores (B, BEAM_SIZE)."""
    out = generate(
        model,
        inputs,
        pad_id,
        num_beams=BEAM_SIZE,
        num_return_sequences=BEAM_SIZE,
        early_stopping=early_stopping,
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
