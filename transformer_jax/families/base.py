"""The types that describe a family: its variants, its fixed fields, and the format of its checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer_jax.config import ConfigError, nearest
from transformer_jax.families.layouts import LINEAR, SAME, Layout, Linear, Vector
from transformer_jax.models import TransformerConfig
from transformer_jax.models.front_ends import FrontEnd, Tokens


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter of this library and the tensor of a checkpoint that holds it.

    Attributes:
      ours: path of the parameter; ``{i}`` stands for the layer's index, as in ``encoder/layer_{i}``.
      theirs: name of the tensor; ``{i}`` stands for the layer's index here too.
      layout: how the parameter lies in the tensor.
      may_be_zero: True if an intact checkpoint may have only zeros in this kernel, embedding or scale of a
        norm. In other ones they mean that the file is damaged.
      is_optional: True if the parameter is zero when a checkpoint lacks the tensor.
      when: a field of the config and a value; the entry is used only for configs in which the field has it.
    """

    ours: str
    theirs: str
    layout: Layout = SAME
    may_be_zero: bool = False
    is_optional: bool = False
    when: tuple[str, Any] | None = None

    def applies(self, config: TransformerConfig) -> bool:
        """Returns whether models with this config use the entry."""
        return self.when is None or getattr(config, self.when[0]) == self.when[1]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """How the Hugging Face ``transformers`` folders of a family are read and written.

    Attributes:
      model_type: the value of this key in ``config.json``.
      fields: pairs (field of ``TransformerConfig``, key of ``config.json``) with the same meaning.
      tensors: the tensors of all heads; those whose parameter a config does not have are not used.
      architectures: for each head of the family, the name of the class in ``transformers``.
      required: keys of ``config.json`` and the values that they must have if they are present, because the
        family's ``fixed`` fields mean these.
      read: returns the fields that need more than renaming, given the content of ``config.json`` and the
        names of all tensors.
      write: returns the keys of ``config.json`` for those fields.
      also: other values of ``model_type`` that are read in the same way, with their ``architectures``.
      head_dropouts: for each head whose rate of dropout has a key in ``config.json``: this key, and the value
        of the field ``head_dropout`` if the key is missing or null.
      aliases: names under which a checkpoint may store a tensor once more; the copies must be equal.
      ignored: regular expressions for names of tensors that hold nothing learned.
      left_over: for a head, regular expressions for names of tensors that models with this head do not read,
        because they belong to another head that the checkpoint was fine-tuned from.
      prefix: of the tensors' names; checkpoints of the model without a head lack it.
      heads: pairs (head, names of tensors without the prefix). The checkpoint has the first head whose
        tensors are all present; between several heads with labels, its ``architectures`` decide.
    """

    model_type: str
    fields: tuple[tuple[str, str], ...]
    tensors: tuple[Tensor, ...]
    architectures: Mapping[str, str]
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any], frozenset[str]], dict[str, Any]] = lambda config, names: {}
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    also: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    head_dropouts: Mapping[str, tuple[str, float | None]] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    left_over: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    heads: tuple[tuple[str, tuple[str, ...]], ...] = (("tokens", ()),)

    @property
    def classes(self) -> dict[str, Mapping[str, str]]:
        """For each ``model_type`` that is read, the names of its classes in ``transformers``, by head."""
        return {self.model_type: self.architectures, **self.also}


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of a paper.

    Attributes:
      name: the name of its module in ``transformer_jax.families``.
      variants: for each published variant, its fields of ``TransformerConfig``.
      fixed: fields that all variants share; a config belongs to the family if it has them.
      defaults: fields that all variants have unless they are changed.
      checkpoint: None if ``transformers`` has no such model.
      vocab_size: number of tokens unless it is changed; None for models without tokens.
      derived: returns fields that follow from the other fields, unless they are changed.
    """

    name: str
    variants: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    vocab_size: int | None = None
    derived: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}

    def config(self, variant: str = "", **changes: Any) -> TransformerConfig:
        """Returns the config of a published variant.

        Args:
          variant: a key of ``variants``; it may be left out if there is only one.
          changes: any fields of ``TransformerConfig`` or of its front end, such as ``vocab_size``.

        Raises:
          ConfigError: the variant or a field is unknown, or the fields contradict each other.
        """
        if not variant and len(self.variants) == 1:
            (variant,) = self.variants
        if variant not in self.variants:
            raise ConfigError(
                f"no variant {variant!r} of the family {self.name}; there are {', '.join(self.variants)}"
            )
        own = {} if self.vocab_size is None else {"vocab_size": self.vocab_size}
        fields = {**own, **self.fixed, **self.defaults, **self.variants[variant], **changes}
        return make_config({**fields, **self.derived(fields), **changes})

    def has(self, config: TransformerConfig) -> bool:
        """Returns whether ``config`` is a model of this family, of any size."""
        return not self.differing(config)

    def differing(self, config: TransformerConfig) -> list[str]:
        """Returns the names of the fixed fields that have another value in ``config``."""
        return [name for name, value in self.fixed.items() if not _is_alike(getattr(config, name), value)]


def _is_alike(value: Any, fixed: Any) -> bool:
    return fixed.is_alike(value) if isinstance(fixed, FrontEnd) else value == fixed


def make_config(fields: Mapping[str, Any]) -> TransformerConfig:
    """Returns the config with these fields, those of its front end among them.

    Raises:
      ConfigError: neither has a field of a name, or a value does not fit.
    """
    known = [field.name for field in dataclasses.fields(TransformerConfig)]
    front_end = fields.get("front_end", Tokens())
    inner = [field.name for field in dataclasses.fields(front_end) if field.name != "kind"]
    for name in fields:
        if name not in known and name not in inner:
            raise ConfigError(f"TransformerConfig has no field {name}: {nearest(name, [*known, *inner])}")
    changes = {name: fields[name] for name in inner if name in fields}
    own = {name: value for name, value in fields.items() if name not in changes}
    return TransformerConfig(**{**own, "front_end": front_end.changed(**changes)})


def heads(count: int, d_model: int) -> dict[str, Any]:
    """Returns the fields of ``count`` equal heads; raises ValueError unless they divide ``d_model``."""
    if count < 1 or d_model % count:
        raise ValueError(f"{count} heads cannot share a width of {d_model}: they must divide it")
    return dict(d_model=d_model, num_heads=count, key_size=d_model // count, value_size=d_model // count)


def encoder_size(num_layers: int, d_model: int, num_heads: int, **fields: Any) -> dict[str, Any]:
    """Returns the fields of an encoder with feed-forward networks of ``4 * d_model``, and ``fields``."""
    sizes = heads(num_heads, d_model)
    return dict(num_encoder_layers=num_layers, d_feedforward=4 * d_model, **sizes, **fields)


def linear(
    ours: str, theirs: str, layout: Layout = LINEAR, *, may_be_zero: bool = False
) -> tuple[Tensor, ...]:
    """Returns the kernel, with this layout, and the bias of a linear map."""
    return (
        Tensor(f"{ours}/kernel", f"{theirs}.weight", layout, may_be_zero=may_be_zero),
        Tensor(f"{ours}/bias", f"{theirs}.bias", Vector()),
    )


def layer_norm(ours: str, theirs: str) -> tuple[Tensor, ...]:
    """Returns the scale and the bias of a LayerNorm."""
    return (Tensor(f"{ours}/scale", f"{theirs}.weight"), Tensor(f"{ours}/bias", f"{theirs}.bias"))


def attention(ours: str, query: str, key: str, value: str, output: str) -> tuple[Tensor, ...]:
    """Returns the four projections of a multi-head attention, given the names of their modules."""
    inward = {"query": query, "key": key, "value": value}
    return (
        *(tensor for name, theirs in inward.items() for tensor in linear(f"{ours}/{name}", theirs)),
        *linear(f"{ours}/output", output, Linear(inputs=2)),
    )
