"""The tiny Hugging Face models of the parity fixtures: their sizes, their random weights, their inputs.

Sizes are chosen so that a mix-up shows: widths, feed-forward widths, numbers of heads and of layers differ,
and in both T5 models ``num_heads * d_kv`` is not ``d_model``. Needs torch and transformers: see
``make_fixtures``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

VOCAB_SIZE = 67
FIRST_PLAIN_ID = 4  # every special token but Marian's pad, the last id, lies below
BERT_LENGTHS = (11, 6, 9, 4)
SOURCE_LENGTHS = (11, 5, 8, 3)
TARGET_LENGTHS = (7, 4, 6, 3)
PROMPT_LENGTHS = (6, 3, 5, 2)


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """One model of the set.

    Attributes:
      architecture: class in ``transformers``.
      config: arguments of its config class.
      outputs: what its forward pass gives that must be reproduced.
      seed: of weights and inputs; the search for one whose outputs are worth comparing starts here.
      spreads: parameters, by the end of their name, drawn with another standard deviation than 0.2: so that
        what comes out depends on what went in, and texts of many tokens and lengths are decoded.
      eos_scale: factor on the eos row of the embeddings that give the logits, so that eos comes often enough.
      eos_bias: the same for models with ``final_logits_bias``: what is added there.
    """

    architecture: str
    config: Mapping[str, Any]
    outputs: tuple[str, ...] = ("logits",)
    seed: int = 0
    spreads: Mapping[str, float] = dataclasses.field(default_factory=dict)
    eos_scale: float = 1.0
    eos_bias: float = 0.0

    @property
    def model_class(self) -> type[transformers.PreTrainedModel]:
        return getattr(transformers, self.architecture)

    @property
    def family(self) -> str:
        return self.model_class.config_class.model_type

    @property
    def decodes(self) -> bool:
        return self.model_class.can_generate()


_BERT = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=28,
    max_position_embeddings=14,
    type_vocab_size=2,
)
_T5 = dict(
    vocab_size=VOCAB_SIZE,
    d_model=24,
    d_kv=10,
    d_ff=44,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=8,  # closer than the texts are long, so that the last bucket is used
    decoder_start_token_id=0,
)
_T5_V1_1 = _T5 | dict(
    d_model=16,
    d_kv=6,
    d_ff=28,
    num_decoder_layers=1,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)
_BART = dict(
    vocab_size=VOCAB_SIZE,
    d_model=24,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=36,
    decoder_ffn_dim=36,
    max_position_embeddings=20,
)
_MARIAN = dict(
    vocab_size=VOCAB_SIZE,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=28,
    decoder_ffn_dim=28,
    max_position_embeddings=20,
    activation_function="swish",
    scale_embedding=True,
    pad_token_id=VOCAB_SIZE - 1,
    decoder_start_token_id=VOCAB_SIZE - 1,
    eos_token_id=0,
)
_GPT2 = dict(
    vocab_size=VOCAB_SIZE,
    n_positions=24,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_inner=52,
    bos_token_id=VOCAB_SIZE - 1,
    eos_token_id=VOCAB_SIZE - 1,
)
_ROBERTA = dict(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=14,  # two more than the longest text that fits
    type_vocab_size=1,
    pad_token_id=1,
)
_DISTILBERT = dict(
    vocab_size=20,
    dim=8,
    n_layers=1,
    n_heads=2,
    hidden_dim=12,
    max_position_embeddings=12,
)
_VIT = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=28,
    image_size=32,
    patch_size=8,
    num_channels=3,
    num_labels=5,
)

# For a head alone, beside a fixture of the same family.
_SMALLER = dict(hidden_size=8, num_hidden_layers=1, intermediate_size=12)

# With 0.2 everywhere a model with tied embeddings says the same token again and again.
_T5_SPREADS = {
    "shared.weight": 1.0,
    ".o.weight": 0.6,
    "wi.weight": 0.4,
    "wo.weight": 2.0,
    "relative_attention_bias.weight": 1.0,
}

TINY_MODELS = {
    "bert_base_model": TinyModel("BertModel", _BERT, ("last_hidden_state", "pooler_output"), seed=1),
    "bert_masked_lm": TinyModel("BertForMaskedLM", _BERT, seed=2),
    "bert_pretraining": TinyModel(
        "BertForPreTraining", _BERT, ("prediction_logits", "seq_relationship_logits"), seed=3
    ),
    "bert_next_sentence": TinyModel("BertForNextSentencePrediction", _BERT | _SMALLER, seed=8),
    "bert_sequence": TinyModel("BertForSequenceClassification", _BERT | dict(num_labels=3), seed=4),
    "bert_tokens": TinyModel("BertForTokenClassification", _BERT | dict(num_labels=5), seed=5),
    "bert_qa": TinyModel("BertForQuestionAnswering", _BERT, ("start_logits", "end_logits"), seed=6),
    "roberta_masked_lm": TinyModel("RobertaForMaskedLM", _ROBERTA, seed=11),
    "roberta_sequence": TinyModel("RobertaForSequenceClassification", _ROBERTA | dict(num_labels=3), seed=12),
    "distilbert_masked_lm": TinyModel("DistilBertForMaskedLM", _DISTILBERT, seed=13),
    "distilbert_sequence": TinyModel(
        "DistilBertForSequenceClassification", _DISTILBERT | dict(num_labels=3), seed=14
    ),
    "gpt2": TinyModel("GPT2LMHeadModel", _GPT2, seed=166, eos_scale=1.8),
    "t5": TinyModel("T5ForConditionalGeneration", _T5, seed=3637, spreads=_T5_SPREADS, eos_scale=1.5),
    "t5_v1_1": TinyModel(
        "T5ForConditionalGeneration",
        _T5_V1_1,
        seed=336,
        spreads={"shared.weight": 1.0, "lm_head.weight": 0.3},
        eos_scale=1.8,
    ),
    "t5_encoder": TinyModel(
        "T5EncoderModel",
        _T5 | dict(d_model=8, d_kv=3, d_ff=12, num_heads=2, feed_forward_proj="gated-gelu"),
        ("last_hidden_state",),
        seed=10,
    ),
    "bart": TinyModel(
        "BartForConditionalGeneration",
        _BART,
        seed=691,
        spreads={"fc2.weight": 0.8, "embed_positions.weight": 0.6},
        eos_bias=1.0,
    ),
    "marian": TinyModel("MarianMTModel", _MARIAN, seed=2966, spreads={"fc2.weight": 0.8}, eos_bias=1.2),
    "vit": TinyModel("ViTForImageClassification", _VIT, seed=7),
    "vit_base_model": TinyModel(
        "ViTModel",
        _VIT | _SMALLER | dict(image_size=12, patch_size=4),
        ("last_hidden_state", "pooler_output"),
        seed=9,
    ),
}


def build(tiny: TinyModel, seed: int) -> transformers.PreTrainedModel:
    """The model in evaluation mode, every weight drawn from ``seed``, gradients of all of them wanted."""
    config = tiny.model_class.config_class(**tiny.config)
    config._attn_implementation = "eager"
    model = tiny.model_class(config).eval()
    if tiny.config.get("tie_word_embeddings") is False:
        # transformers 5 ties T5 v1.1's embeddings too, until a checkpoint has two different ones.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    rng = np.random.default_rng(seed)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            # torch leaves the padding row's part out of the gradient, wrongly where a text begins with it.
            module.padding_idx = None
        if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
            continue  # a formula, not weights
        mean = float(type(module).__name__.endswith("LayerNorm"))
        for own_name, weight in module.named_parameters(name, recurse=False):
            spread = next((s for end, s in tiny.spreads.items() if own_name.endswith(end)), 0.2)
            draw(weight, rng, mean if own_name.endswith("weight") else 0.0, spread)
    _favour_eos(model, tiny, rng)
    return model


def draw(weight: torch.Tensor, rng: np.random.Generator, mean: float, spread: float) -> None:
    """Fills ``weight`` in place; NumPy's numbers stay the same from one torch to the next."""
    numbers = mean + spread * rng.standard_normal(tuple(weight.shape))
    weight.data.copy_(torch.from_numpy(numbers.astype(np.float32)))


def _favour_eos(model: transformers.PreTrainedModel, tiny: TinyModel, rng: np.random.Generator) -> None:
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        draw(bias, rng, 0.0, 0.2)
        bias.data[0, model.config.eos_token_id] += tiny.eos_bias
        bias.requires_grad_()
    if tiny.decodes and tiny.eos_scale != 1:
        model.get_output_embeddings().weight.data[model.config.eos_token_id] *= tiny.eos_scale


def draw_inputs(tiny: TinyModel, config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arguments of the model's forward pass; rows are of different lengths, padded on the right.

    Token ids, masks and so on are int32 (B, L); images float32 (B, channels, height, width) in [-1, 1].
    """
    if tiny.model_class.main_input_name == "pixel_values":
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": rng.uniform(-1, 1, shape).astype(np.float32)}
    if not tiny.decodes:
        inputs = _texts(rng, BERT_LENGTHS, config.pad_token_id, config.vocab_size)
        if getattr(config, "type_vocab_size", 0) < 2:
            return inputs
        mask = inputs["attention_mask"]
        second = np.arange(mask.shape[1])[None, :] >= np.array(BERT_LENGTHS)[:, None] // 2
        return inputs | {"token_type_ids": (mask * second).astype(np.int32)}
    if not config.is_encoder_decoder:
        return _texts(rng, PROMPT_LENGTHS, 0)
    inputs = _texts(rng, SOURCE_LENGTHS, config.pad_token_id)
    for row, length in enumerate(SOURCE_LENGTHS):
        inputs["input_ids"][row, length - 1] = config.eos_token_id
    targets = _texts(rng, TARGET_LENGTHS, config.pad_token_id)
    starts = np.full((len(TARGET_LENGTHS), 1), config.decoder_start_token_id, np.int32)
    decoder_input_ids = np.concatenate([starts, targets["input_ids"][:, :-1]], axis=1)
    mask = targets["attention_mask"]
    decoder_input_ids = np.where(mask == 1, decoder_input_ids, config.pad_token_id).astype(np.int32)
    return inputs | {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": mask}


def _texts(
    rng: np.random.Generator, lengths: tuple[int, ...], pad_id: int, vocab_size: int = VOCAB_SIZE
) -> dict[str, np.ndarray]:
    mask = (np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]).astype(np.int32)
    ids = rng.integers(FIRST_PLAIN_ID, vocab_size - 1, mask.shape, dtype=np.int32)
    return {"input_ids": np.where(mask == 1, ids, np.int32(pad_id)), "attention_mask": mask}


def left_padded(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same texts padded on the left, with ``position_ids`` that count from each text's first token."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    shifts = mask.shape[1] - mask.sum(1)
    rolled = {
        name: np.stack([np.roll(row, shift) for row, shift in zip(array, shifts, strict=True)])
        for name, array in (("input_ids", ids), ("attention_mask", mask))
    }
    positions = np.maximum(np.cumsum(rolled["attention_mask"], axis=1) - 1, 0)
    return rolled | {"position_ids": positions.astype(np.int32)}
