"""Reads checkpoints in the format of Hugging Face ``transformers``, without PyTorch.

bart = from_pretrained("path/to/folder")      # or a name on the hub; .config .model .params .tokenizer
bart.generate("My friends are <mask>")        # or stream; an encoder alone has embed and classify
save_pretrained("another/folder", bart)       # which transformers loads, with the same logits

The steps, a function each: ``hub.open_checkpoint`` opens the folder, ``changed_config`` returns the config,
``read_params`` reads and converts the tensors, and ``read_model`` adds the tokenizer and the defaults.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
from jax.sharding import Mesh

from transformer_jax.config import ConfigError
from transformer_jax.families.base import make_config
from transformer_jax.inference.model import Pretrained
from transformer_jax.models import TransformerConfig, abstract_params, build, example_inputs
from transformer_jax.models.front_ends import FRONT_ENDS, FrontEnd
from transformer_jax.models.heads import HEADS, task_of
from transformer_jax.pretrained.config_json import CONFIG_FILE, head_dropout
from transformer_jax.pretrained.conversion import differing, fields_of
from transformer_jax.pretrained.folder import CheckpointFolder
from transformer_jax.pretrained.generation_json import read_generation
from transformer_jax.pretrained.hub import open_checkpoint
from transformer_jax.pretrained.preprocessors import read_preprocessor
from transformer_jax.pretrained.saving import save_pretrained as save_pretrained  # beside its counterpart
from transformer_jax.pretrained.sentence_transformers import read_pooling
from transformer_jax.pretrained.weights import read_weights
from transformer_jax.reporting.progress import say
from transformer_jax.sharding import partitioning
from transformer_jax.types import PyTree


def from_pretrained(
    name_or_path: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    rules: partitioning.Rules = partitioning.DEFAULT_RULES,
    seed: int = 0,
    family: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Pretrained:
    """Reads a checkpoint of one of the families in ``FAMILIES``, such as BERT or T5.

    In this library image models take pixels from -1 to 1. If ``preprocessor_config.json`` has another mean or
    standard deviation, the patch embedding is changed so that the model's outputs stay the same.

    Args:
      name_or_path: a folder with ``config.json`` and safetensors, or a name on the hub.
      mesh: the devices of the parameters; by default the first device. They are sharded as they are read.
      rules: the table from logical to mesh axes.
      seed: for initializing the parts of a head that the checkpoint does not have.
      family: a name in ``FAMILIES``, if several read such checkpoints: "t5_encoder" for the encoder of a T5.
      revision, token, cache_dir: of a name on the hub; see ``hub.open_checkpoint``.
      changes: other values for fields of ``TransformerConfig`` or of its front end, except those that
        determine the shapes of parameters. With another ``head`` or ``num_labels``, the parts that the
        checkpoint lacks are initialized, and a line says which. For images of another size, positions are
        interpolated (Dosovitskiy et al. 2021, section 3.2). ``max_length`` may differ if positions are not
        learned.

    Raises:
      ConfigError: ``config.json`` is missing, broken, of an unknown family, or describes a model that differs
        from the family of this library; or another JSON file is broken or not supported; or a change does not
        fit.
      WeightsError: the tensors are missing, broken, pickled, or not those that ``config.json`` describes.
      DataError: the tokenizer is broken.
    """
    folder = open_checkpoint(name_or_path, family=family, revision=revision, token=token, cache_dir=cache_dir)
    return read_model(folder, mesh=mesh, rules=rules, seed=seed, **changes)


def read_model(
    folder: CheckpointFolder,
    *,
    mesh: Mesh | None = None,
    rules: partitioning.Rules = partitioning.DEFAULT_RULES,
    seed: int = 0,
    **changes: Any,
) -> Pretrained:
    """Reads a checkpoint that has been opened; for the rest see ``from_pretrained``."""
    config = changed_config(folder, changes)
    preprocessor = read_preprocessor(folder, config)
    pooling = read_pooling(folder, config.inputs_max_length)
    generation = read_generation(folder, config)
    _check_vocabulary(folder, config)
    params = read_params(folder, config, mesh=mesh, rules=rules, seed=seed)
    is_stored_head = _has_stored_head(folder, config)
    return Pretrained(
        folder.family,
        config,
        params,
        folder.tokenizer,
        folder.model.labels if is_stored_head else (),
        folder.model.problem_type if is_stored_head else "",
        pooling,
        sizing=preprocessor.sizing if preprocessor is not None else None,
        generation=generation,
    )


def changed_config(folder: CheckpointFolder, changes: Mapping[str, Any]) -> TransformerConfig:
    """Returns the config of a checkpoint with ``changes``.

    Raises:
      ConfigError: a change does not fit the checkpoint's parameters.
    """
    stored = folder.model.config
    head = _head_of(folder, changes.get("head", stored.head))
    where = folder.path / CONFIG_FILE
    rate = head_dropout(folder.checkpoint, folder.content, head, where)
    own = {} if head == stored.head else {"head_dropout": rate}
    config = _changed(stored, {**own, **changes, "head": head})
    _check_changed(stored, _as_stored(config, stored), folder.path)
    return config


def read_params(
    folder: CheckpointFolder,
    config: TransformerConfig,
    *,
    mesh: Mesh | None,
    rules: partitioning.Rules,
    seed: int,
) -> PyTree:
    """Returns the parameters of a checkpoint for a config that ``changed_config`` returned.

    What the checkpoint does not have of the head is drawn with ``seed``, as the model initializes it.

    Raises:
      ConfigError: ``preprocessor_config.json`` is broken or not supported.
      WeightsError: the tensors are broken, or not those that ``config.json`` describes.
    """
    stored = folder.model.config
    as_stored = _as_stored(config, stored)  # positions are interpolated after they have been read
    template = params_template(as_stored, mesh, rules)
    new_head = not _has_stored_head(folder, config)
    params = read_weights(folder.tensors, folder.checkpoint, as_stored, template, new_head=new_head)
    if new_head:
        params = _draw_missing(params, as_stored, template, seed)
    if config.front_end != stored.front_end:
        params = config.front_end.resized(params, stored.front_end)
    preprocessor = read_preprocessor(folder, config)
    return params if preprocessor is None else preprocessor.merged(params)


def _has_stored_head(folder: CheckpointFolder, config: TransformerConfig) -> bool:
    stored = folder.model.config
    return (config.head, config.num_labels) == (stored.head, stored.num_labels)


def _as_stored(config: TransformerConfig, stored: TransformerConfig) -> TransformerConfig:
    """Returns ``config`` with the sizes of the front end, and so the positions, of ``stored``."""
    if config.front_end == stored.front_end:
        return config
    return dataclasses.replace(config, front_end=stored.front_end, max_length=stored.max_length)


def _head_of(folder: CheckpointFolder, head: Any) -> str:
    """Returns the head of this name, or else the one with this task, that the family's models have.

    Raises:
      ConfigError: the family has none.
    """
    family, heads = folder.family, list(folder.checkpoint.architectures)
    named = [known for known in heads if head == known]
    fitting = named or [known for known in heads if head == task_of(known)]
    if not fitting:
        raise ConfigError(
            f"{folder.path} is a {family.name} checkpoint, and there is no {family.name} with head={head!r}, "
            f"only with {' or '.join(map(repr, heads))}"
        )
    return fitting[0]


def _check_changed(stored: TransformerConfig, config: TransformerConfig, folder: pathlib.Path) -> None:
    """Raises ConfigError, which names the changed fields, if parameters have other shapes than stored."""
    changed = differing(stored, config)
    if not changed:
        return
    there, here = fields_of(stored), fields_of(config)
    layout = {name: getattr(stored, name) for name in ("head", "num_labels", "scan_layers")}
    their_shapes, our_shapes = (
        jax.tree.map(lambda leaf: leaf.shape, params_template(one, None, partitioning.DEFAULT_RULES))
        for one in (stored, dataclasses.replace(config, **layout))
    )
    if their_shapes != our_shapes:
        raise ConfigError(
            f"the parameters in {folder} are of other shapes than those of a model with\n  "
            + "\n  ".join(f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in changed)
        )


def _check_vocabulary(folder: CheckpointFolder, config: TransformerConfig) -> None:
    """Raises ConfigError if the tokenizer has more tokens than the model, special tokens aside.

    Special tokens may be unused: the published BART for summaries lacks <mask>, which its tokenizer has.
    """
    tokenizer = folder.tokenizer
    if tokenizer is None:
        return
    surplus = set(range(config.vocab_size, tokenizer.vocab_size))
    if not surplus <= set(tokenizer.special_ids):
        raise ConfigError(
            f"the tokenizer in {folder.path} has {tokenizer.vocab_size} tokens, the model only "
            f"{config.vocab_size}: it is the tokenizer of another model"
        )


def _changed(stored: TransformerConfig, changes: Mapping[str, Any]) -> TransformerConfig:
    """Returns the stored config with ``changes`` to its fields or those of its front end.

    ``num_labels`` and ``max_length`` follow from the other fields unless they are changed too.
    """
    for name, value in changes.items():
        kinds = [kind for kind, front_end in FRONT_ENDS.items() if name in _names(front_end)]
        if kinds and stored.front_end.kind not in kinds:
            raise ConfigError(
                f"{name}={value!r} does not fit the checkpoint, which is a model of {stored.front_end.UNIT}"
            )
    own = {name: value for name, value in changes.items() if name in _names(type(stored.front_end))}
    front_end = changes.get("front_end", stored.front_end).changed(**own)
    free = front_end.resizable(stored.front_end)
    here, there = ({"type": type(one), **vars(one)} for one in (front_end, stored.front_end))
    if any(name not in free and here.get(name) != there.get(name) for name in {**here, **there}):
        raise ConfigError(
            f"{front_end} does not fit the checkpoint, which is for {stored.front_end}: only "
            f"{stored.front_end.RESIZABLE or 'other fields of the config'} may differ"
        )
    fields = {**vars(stored), **changes, "front_end": front_end}
    if not HEADS[fields["head"]].labelled:
        fields["num_labels"] = changes.get("num_labels", 0)
    if front_end.max_length is not None:
        fields["max_length"] = changes.get("max_length", front_end.max_length)
    return make_config({name: value for name, value in fields.items() if name not in own})


def _names(front_end: type[FrontEnd]) -> list[str]:
    return [field.name for field in dataclasses.fields(front_end) if field.name != "kind"]


def params_template(config: TransformerConfig, mesh: Mesh | None, rules: partitioning.Rules) -> PyTree:
    """Returns a ``ShapeDtypeStruct`` for each parameter, with its sharding if there is a mesh."""
    boxed = abstract_params(config)
    plain = partitioning.unbox(boxed)
    if mesh is None:
        return plain
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        plain,
        partitioning.state_shardings(mesh, boxed, rules),
    )


def _draw_missing(params: PyTree, config: TransformerConfig, template: PyTree, seed: int) -> PyTree:
    """Replaces the parameters that are None by initialized ones, and prints their names."""
    is_missing = jax.tree.map(lambda leaf: leaf is None, params, is_leaf=lambda leaf: leaf is None)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, missing in jax.tree_util.tree_leaves_with_path(is_missing)
        if missing
    ]
    if not names:
        return params
    say(f"randomly initialized, because the checkpoint does not have it: {', '.join(names)}")

    def draw() -> list[jax.Array]:
        drawn = build(config).init(jax.random.key(seed), **cast(Any, example_inputs(config)))["params"]
        pairs = zip(jax.tree.leaves(partitioning.unbox(drawn)), jax.tree.leaves(is_missing), strict=True)
        return [leaf for leaf, missing in pairs if missing]

    shardings = [
        leaf.sharding
        for leaf, missing in zip(jax.tree.leaves(template), jax.tree.leaves(is_missing), strict=True)
        if missing
    ]
    new = iter(jax.jit(draw, out_shardings=shardings if None not in shardings else None)())
    return jax.tree.map(
        lambda leaf: next(new) if leaf is None else leaf, params, is_leaf=lambda leaf: leaf is None
    )
