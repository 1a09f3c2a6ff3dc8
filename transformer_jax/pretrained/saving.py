"""Writes models as folders in the format of Hugging Face ``transformers``, without PyTorch."""

import os
import pathlib
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, marian_tokenizer
from transformer_jax.data.tokenizers import targets_path
from transformer_jax.files import write_json
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.pooling import check_known
from transformer_jax.models import TransformerConfig, abstract_params
from transformer_jax.models.heads import HEADS
from transformer_jax.pretrained.config_json import CONFIG_FILE, content_of
from transformer_jax.pretrained.folder import TOKENIZER_FILE, read_config
from transformer_jax.pretrained.generation_json import GENERATION_FILE
from transformer_jax.pretrained.preprocessor_json import PREPROCESSOR_FILE
from transformer_jax.pretrained.preprocessors import PREPROCESSORS
from transformer_jax.pretrained.sentence_transformers import write_pooling
from transformer_jax.pretrained.weights import SHARD_BYTES, check_params, new_weights
from transformer_jax.sharding import partitioning

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def save_pretrained(
    folder: str | os.PathLike[str], pretrained: Pretrained, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a folder that ``transformers`` loads: ``config.json``, safetensors, and the tokenizer.

    It also writes ``preprocessor_config.json`` for an image model, the pooling of a model of
    sentence-transformers, and what was read from ``generation_config.json``. An image model that was read
    from a folder resizes images as that folder said; the model of a run resizes whole images, although its
    evaluation here may crop them.

    Args:
      folder: it is made if it does not exist. Files with these names are replaced; if the model has no
        tokenizer, the files of another model's tokenizer are removed.
      pretrained: a model of a family that ``transformers`` has.
      shard_bytes: size limit of a file of weights.

    Raises:
      ConfigError: ``transformers`` has no such model; or the model's pooling is not supported; or the folder
        has the ``config.json`` of something else, such as a run.
      WeightsError: the parameters are not those of a model with this config.
      OSError: a file cannot be written. If it is a file of weights, the folder is unchanged.
    """
    target = pathlib.Path(os.path.expanduser(os.fspath(folder)))
    checkpoint = pretrained.family.checkpoint
    content = content_of(pretrained.family, pretrained.config, pretrained.labels)
    assert checkpoint is not None  # or there would be no content
    if pretrained.problem_type:
        content["problem_type"] = pretrained.problem_type
    if pretrained.pooling is not None:
        check_known(pretrained.pooling)
    if (target / CONFIG_FILE).exists() and "model_type" not in read_config(target):
        raise ConfigError(
            f"{target} is not a checkpoint but, for example, a run, and its {CONFIG_FILE} would be lost: "
            "name another folder"
        )
    check_params(pretrained.params, partitioning.unbox(abstract_params(pretrained.config)))
    target.mkdir(parents=True, exist_ok=True)
    with new_weights(
        target,
        checkpoint,
        pretrained.config,
        pretrained.params,
        with_prefix=not HEADS[pretrained.config.head].is_bare,
        shard_bytes=shard_bytes,
    ):
        (target / CONFIG_FILE).unlink(missing_ok=True)  # or an interruption would leave another model's
    if pretrained.tokenizer is None:  # otherwise another model's would be read for this model
        path = target / TOKENIZER_FILE
        others = (target / name for name in (TOKENIZER_CONFIG_FILE, marian_tokenizer.SOURCE_FILE))
        for file in (path, targets_path(path), *others):
            file.unlink(missing_ok=True)
    else:
        _templated(pretrained.tokenizer, pretrained.config).save(target / TOKENIZER_FILE)
        write_json(
            target / TOKENIZER_CONFIG_FILE, _tokenizer_content(pretrained.tokenizer, pretrained.config)
        )
    write_pooling(target, pretrained.pooling, pretrained.config.output_size)
    if pretrained.generation.content:
        write_json(target / GENERATION_FILE, dict(pretrained.generation.content))
    else:
        (target / GENERATION_FILE).unlink(missing_ok=True)
    preprocessor = PREPROCESSORS.get(pretrained.config.front_end.kind)
    if preprocessor is not None:
        write_json(target / PREPROCESSOR_FILE, preprocessor.content(pretrained.config, pretrained.sizing))
    write_json(target / CONFIG_FILE, content)  # last, because it makes the folder a checkpoint


def _templated(tokenizer: Tokenizer, config: TransformerConfig) -> Tokenizer:
    """Returns the tokenizer with the template of special tokens, which tokenizers of runs lack."""
    names = tokenizer.role_tokens
    if config.is_encoder_only and {"cls", "sep"} <= names.keys():
        cls, sep = names["cls"], names["sep"]
        return tokenizer.with_template(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1")
    if not config.is_encoder_only and not config.is_decoder_only and "eos" in names:
        return tokenizer.with_template(f"$A {names['eos']}", f"$A {names['eos']} $B {names['eos']}")
    return tokenizer


def _tokenizer_content(tokenizer: Tokenizer, config: TransformerConfig) -> dict[str, Any]:
    names = {f"{role}_token": token for role, token in tokenizer.role_tokens.items()}
    # Without this key, some versions of transformers give every model token types, and others give none.
    types = ["token_type_ids"] if config.num_token_types > 1 else []
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.inputs_max_length,
        "model_input_names": ["input_ids", *types, "attention_mask"],
    } | names
