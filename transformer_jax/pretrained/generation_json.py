"""Reads ``generation_config.json`` of ``transformers``: the defaults of a model's ``generate``.

Older versions wrote the same keys to ``config.json``; they are read from there if the file does not exist.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE
from transformer_jax.decoding.constraints import Constraints
from transformer_jax.decoding.settings import TextRules
from transformer_jax.inference.defaults import MAX_NEW_TOKENS, RUN_DEFAULTS, GenerationDefaults
from transformer_jax.models import TransformerConfig
from transformer_jax.pretrained.config_json import CONFIG_FILE
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.reporting.progress import say

GENERATION_FILE = "generation_config.json"

# The supported keys and the types of their values.
_READ: dict[str, tuple[type, ...]] = {
    "num_beams": (int,),
    "length_penalty": (int, float),
    "early_stopping": (bool, str),
    "max_new_tokens": (int,),
    "max_length": (int,),
    "min_new_tokens": (int,),
    "min_length": (int,),
    "no_repeat_ngram_size": (int,),
    "forced_bos_token_id": (int,),
    "forced_eos_token_id": (int, list),
    "bad_words_ids": (list,),
    "suppress_tokens": (list,),
    "renormalize_logits": (bool,),
    "do_sample": (bool,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
}
# Special tokens, which must be those of ``config.json``: our field and the key.
_SPECIAL = {"eos_id": "eos_token_id", "decoder_start_id": "decoder_start_token_id"}
_TOP_K = 50  # the default of transformers for sampling
# Keys that do not change the generated tokens.
_HARMLESS = {
    *("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "use_cache"),
    *("cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "low_memory"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "remove_invalid_values", "compile_config", "disable_compile"),
    *("continuous_batching_config", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
}
# Keys of ``transformers`` that are not supported, with the value that has no effect.
_UNKNOWN_HERE: dict[str, Any] = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "min_p": 0,
    "top_h": None,
    "guidance_scale": 1,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
    "forced_decoder_ids": None,
    "sequence_bias": None,
    "force_words_ids": None,
    "constraints": None,
    "token_healing": False,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
    "dola_layers": None,
    "assistant_ensemble_weight": None,
}


def read_generation(folder: CheckpointFolder, config: TransformerConfig) -> GenerationDefaults:
    """Returns a checkpoint's defaults for generating text; prints the settings that are not supported.

    Args:
      folder: the checkpoint.
      config: of the model.

    Raises:
      ConfigError: the file is broken, or a value is not allowed.
    """
    if config.is_encoder_only:
        return RUN_DEFAULTS
    if folder.has(GENERATION_FILE):
        path = folder.path / GENERATION_FILE
        content = folder.read_object(GENERATION_FILE)
    else:
        path = folder.path / CONFIG_FILE
        content = _legacy(folder.content)
    present = {key: value for key, value in content.items() if value is not None}
    for key, types in _READ.items():
        value = present.get(key)
        if key in present and (
            not isinstance(value, types) or (bool not in types and isinstance(value, bool))
        ):
            wanted = " or ".join(one.__name__ for one in types)
            raise ConfigError(f"{path} has {key}={value!r}, which must be {wanted}")
    try:
        found = _defaults(present, content, config.vocab_size)
        found.chosen()
        found.rules.constraints.check(config.vocab_size)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} has settings that cannot be used: {error}") from error
    left_out = _left_out(present, config)
    if left_out:
        say(
            f"{path} has settings that are not supported here, so that texts may differ from those of "
            f"transformers: {left_out}"
        )
    return found


def _legacy(model_content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the generation keys of ``config.json``; if there are any, with the special tokens."""
    keys = _READ.keys() | _UNKNOWN_HERE.keys()
    found = {key: value for key, value in model_content.items() if key in keys and value is not None}
    special = {"bos_token_id", "pad_token_id", *_SPECIAL.values()}
    return found and {key: value for key, value in model_content.items() if key in keys | special}


def _defaults(present: Mapping[str, Any], content: Mapping[str, Any], vocab_size: int) -> GenerationDefaults:
    """Returns the defaults, by the keys that are ``present`` and else by the defaults of ``transformers``."""
    single = [words[0] for words in present.get("bad_words_ids", []) if len(words) == 1]
    eos_ids = _ids(present.get("eos_token_id"))
    banned = [token for token in single if token not in eos_ids] + present.get("suppress_tokens", [])
    min_new_tokens = present.get("min_new_tokens")
    constraints = Constraints(
        banned_ids=tuple(dict.fromkeys(banned)),
        no_repeat_ngram_size=present.get("no_repeat_ngram_size", 0),
        min_new_tokens=min_new_tokens or 0,
        min_length=present.get("min_length", 0) if min_new_tokens is None else 0,
        forced_bos_id=present.get("forced_bos_token_id"),
        forced_eos_id=_single(present.get("forced_eos_token_id")),
        renormalize=present.get("renormalize_logits", False),
    )
    early_stopping = present.get("early_stopping", False)
    beams = dataclasses.replace(TRANSFORMERS_RULE, early_stopping=early_stopping)
    max_length = present.get("max_length") if "max_new_tokens" not in present else None
    do_sample = present.get("do_sample", False) and present.get("num_beams", 1) == 1
    return GenerationDefaults(
        beam_size=present.get("num_beams", 1),
        length_penalty=float(present.get("length_penalty", 1.0)),
        rules=TextRules(beams, constraints, max_length),
        max_new_tokens=present.get(
            "max_new_tokens", MAX_NEW_TOKENS if max_length is None else max_length - 1
        ),
        do_sample=do_sample,
        temperature=float(present.get("temperature", 1.0)),
        top_k=min(present.get("top_k", _TOP_K), vocab_size),
        top_p=float(present.get("top_p", 1.0)),
        content=dict(content),
    )


def _ids(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _single(value: Any) -> Any:
    """Returns the token in a list of one; None if there are several."""
    ids = _ids(value)
    return ids[0] if len(ids) == 1 else None


def _left_out(present: Mapping[str, Any], config: TransformerConfig) -> str:
    """Returns the unsupported keys that have an effect, with their values."""
    known = _READ.keys() | _HARMLESS | set(_SPECIAL.values())
    found = [key for key in present if key not in known and present[key] != _UNKNOWN_HERE.get(key)]
    if present.get("do_sample", False) and present.get("num_beams", 1) > 1:
        found.append("do_sample")  # beam search with sampling
    if any(len(words) != 1 for words in present.get("bad_words_ids", [])):
        found.append("bad_words_ids")
    if "forced_eos_token_id" in present and _single(present["forced_eos_token_id"]) is None:
        found.append("forced_eos_token_id")
    special = _SPECIAL if not config.is_decoder_only else {"eos_id": "eos_token_id"}
    found += [
        key
        for ours, key in special.items()
        if key in present and _single(present[key]) != getattr(config, ours)
    ]
    return ", ".join(f"{key}={present[key]!r}" for key in found)
