"""Reads and writes how a model of sentence-transformers pools token vectors into one text vector.

Beside the files of ``transformers``, its folder has ``modules.json``, the list of modules that are applied
one after the other (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).
"""

import pathlib
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.files import write_json
from transformer_jax.inference.pooling import MODULES_FILE, POOLING_MODES, Pooling
from transformer_jax.pretrained.folder import CheckpointFolder

SENTENCES_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"

_TOKENIZER_CONFIG = "tokenizer_config.json"
_POOLING_FOLDER = "1_Pooling"  # in written folders; modules.json of others may name another one
_MODULES = ("Transformer", "Pooling", "Normalize")
# Files of sentence-transformers before version 6 have a boolean for each mode.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def module_files(folder: CheckpointFolder) -> list[str]:
    """Returns the paths of the pooling configs in a folder of sentence-transformers; [] for other folders.

    Raises:
      ConfigError: ``modules.json`` is broken.
    """
    return [f"{path}/config.json" for kind, path in _modules(folder) if kind == "Pooling"]


def read_pooling(folder: CheckpointFolder, max_length: int) -> Pooling | None:
    """Returns the pooling of a folder of sentence-transformers, or None for other folders.

    Args:
      folder: the checkpoint.
      max_length: the most tokens that the model accepts.

    Raises:
      ConfigError: one of the files is broken or missing.
    """
    modules = _modules(folder)
    if not modules:
        return None
    kinds = [kind for kind, _ in modules]
    unknown = []
    if tuple(kinds) not in (_MODULES, _MODULES[:2]):
        unknown.append(f"{MODULES_FILE} has the modules {', '.join(kinds)}")
    mode = "mean"
    for path in module_files(folder):
        content = folder.read_object(path)
        mode = _mode(content)
        if mode not in POOLING_MODES:
            unknown.append(f"{path} has the mode {mode}")
    sentences = _read_optional(folder, SENTENCES_FILE)
    if sentences.get("do_lower_case"):
        unknown.append(f"{SENTENCES_FILE} has do_lower_case=true")
    prompts = _read_optional(folder, PROMPTS_FILE)
    if prompts.get("default_prompt_name"):
        unknown.append(f"{PROMPTS_FILE} has default_prompt_name={prompts['default_prompt_name']!r}")
    limit = sentences.get("max_seq_length")
    if limit is None:  # since version 6 of sentence-transformers it is in this file
        limit = _read_optional(folder, _TOKENIZER_CONFIG).get("model_max_length")
    if limit is not None and (type(limit) not in (int, float) or limit < 3):
        raise ConfigError(f"{folder.path} limits texts to {limit!r} tokens; the limit must be at least 3")
    most = int(limit) if limit is not None and limit < max_length else 0
    return Pooling(mode, "Normalize" in kinds, most, "; ".join(unknown))


def write_pooling(folder: pathlib.Path, pooling: Pooling | None, d_model: int) -> None:
    """Writes the files that ``read_pooling`` reads; if ``pooling`` is None, removes those of another model.

    Args:
      folder: an existing folder.
      pooling: as it was read.
      d_model: width of the vectors.

    Raises:
      OSError: a file cannot be written.
    """
    for name in (MODULES_FILE, SENTENCES_FILE, PROMPTS_FILE):
        (folder / name).unlink(missing_ok=True)
    if pooling is None:
        return
    (folder / _POOLING_FOLDER).mkdir(exist_ok=True)
    modes = {key: pooling.mode == mode for key, mode in _OLD_KEYS.items()}
    write_json(folder / _POOLING_FOLDER / "config.json", {"word_embedding_dimension": d_model, **modes})
    write_json(
        folder / SENTENCES_FILE, {"max_seq_length": pooling.max_length or None, "do_lower_case": False}
    )
    paths = ("", _POOLING_FOLDER, "2_Normalize")[: 3 if pooling.normalize else 2]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{_MODULES[i]}"}
        for i, path in enumerate(paths)
    ]
    write_json(folder / MODULES_FILE, modules)  # last, because without it the other files are not read


def _modules(folder: CheckpointFolder) -> list[tuple[str, str]]:
    """Returns the kind and the path of each module, in order."""
    path = folder.path / MODULES_FILE
    if not folder.has(MODULES_FILE):
        return []
    content = folder.read_json(MODULES_FILE)
    try:
        found = [(module["type"].rsplit(".")[-1], module["path"].strip("/")) for module in content]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} must be a list of modules, each with a type and a path") from error
    outside = [where for _, where in found if ".." in where.split("/")]
    if not found or outside:
        raise ConfigError(
            f"{path} must name at least one module, and only paths within its folder, not {outside}"
        )
    return found


def _mode(content: dict[str, Any]) -> str:
    """Returns the mode of a pooling, given its config; several modes are joined into one name."""
    named = content.get("pooling_mode")
    if named is None:
        modes = [mode for key, mode in _OLD_KEYS.items() if content.get(key)] or ["mean"]
    else:
        modes = named if isinstance(named, list) else [named]
    return " with ".join(map(str, modes))


def _read_optional(folder: CheckpointFolder, name: str) -> dict[str, Any]:
    return folder.read_object(name) if folder.has(name) else {}
