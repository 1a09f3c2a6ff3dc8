"""What a family is: variants, what they share, and what its checkpoints call things. All of it data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from transformer_jax.config import ConfigError, nearest
from transformer_jax.models import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter of ours and the tensor of a checkpoint that holds it.

    Attributes:
      ours: path of the parameter, with ``{i}`` for the number of a layer (``layer_{i}``).
      theirs: name of the tensor, with ``{i}`` as well.
      kind: how theirs is laid out. "same": alike; "vector": flattened; "linear": (outputs, inputs), as
        PyTorch's ``Linear``; "matrix": (inputs, outputs), as GPT-2's ``Conv1D``; "patches": (outputs,
        channels, height, width), as ``Conv2d``.
      inputs: how many of our kernel's axes are contracted, for "linear" and "matrix".
      part: ``(k, n)`` where theirs holds n of ours side by side, on its last axis, and this is number k.
      leading: axes of size 1 that theirs has in front.
      skipped: rows at the start of theirs that nothing reads; written as zeros.
      may_be_zero: though it is a kernel, an embedding or a norm's scale: all of it, in a whole checkpoint.
      is_optional: zeros where a checkpoint has no such tensor.
      when: a field of the config and the value with which this entry holds.
    """

    ours: str
    theirs: str
    kind: Literal["same", "vector", "linear", "matrix", "patches"] = "same"
    inputs: int = 1
    part: tuple[int, int] = (0, 1)
    leading: int = 0
    skipped: int = 0
    may_be_zero: bool = False
    is_optional: bool = False
    when: tuple[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """How a family's folders in the format of Hugging Face ``transformers`` are read and written.

    Attributes:
      model_type: of ``config.json``.
      fields: pairs (field of ``TransformerConfig``, key of ``config.json``) that mean the same.
      required: keys of ``config.json`` that must have these values where they are there, for the model to be
        what this family's ``fixed`` fields say.
      read: fields that do not just have another name there, from the content of ``config.json`` and the names
        of all tensors.
      write: the keys of ``config.json`` for these.
      tensors: every tensor of every head; those whose parameter a config does not have are not used.
      aliases: names that may stand for the tensor of another name too: what they hold must be the same.
      ignored: regular expressions of names that hold nothing learned.
      left_over: for a head, regular expressions of names that models with it do not read: another
        head's, which a checkpoint may have kept.
      prefix: what names begin with, but for checkpoints of the model without a head.
      heads: pairs (head, tensors without prefix by which a checkpoint shows that it has it); the first that
        fits holds, but of those with labels the one that ``architectures`` names.
      architectures: the class in ``transformers`` for each head.
    """

    model_type: str
    fields: tuple[tuple[str, str], ...]
    tensors: tuple[Tensor, ...]
    architectures: Mapping[str, str]
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any], frozenset[str]], dict[str, Any]] = lambda config, names: {}
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    left_over: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    heads: tuple[tuple[str, tuple[str, ...]], ...] = (("tokens", ()),)


@dataclasses.dataclass(frozen=True)
class Family:
    """A paper's models.

    Attributes:
      name: as in ``transformer_jax.families``.
      variants: fields of ``TransformerConfig`` by name of the variant.
      fixed: fields that all variants share; a config is of this family if it has them.
      defaults: fields that all variants have unless they are changed.
      checkpoint: None where ``transformers`` has no such model.
    """

    name: str
    variants: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def config(self, variant: str, **changes: Any) -> TransformerConfig:
        """The config of a published variant, with ``changes`` to any field of ``TransformerConfig``.

        Raises:
          ConfigError: an unknown variant or field, or a change that does not fit.
        """
        if variant not in self.variants:
            raise ConfigError(
                f"no variant {variant!r} of the family {self.name}; there are {', '.join(self.variants)}"
            )
        return make_config({**self.fixed, **self.defaults, **self.variants[variant], **changes})

    def has(self, config: TransformerConfig) -> bool:
        """Whether ``config`` is one of this family's, of whatever size."""
        return not self.differing(config)

    def differing(self, config: TransformerConfig) -> list[str]:
        """The fixed fields that ``config`` has otherwise."""
        return [name for name, value in self.fixed.items() if getattr(config, name) != value]


def make_config(fields: Mapping[str, Any]) -> TransformerConfig:
    """The config with these fields; raises ConfigError for one that there is not."""
    known = [field.name for field in dataclasses.fields(TransformerConfig)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"TransformerConfig has no field {name}: {nearest(name, known)}")
    return TransformerConfig(**fields)


def heads(count: int, d_model: int) -> dict[str, Any]:
    """``count`` heads that share ``d_model`` among them; raises ValueError if it does not divide."""
    if count < 1 or d_model % count:
        raise ValueError(f"{count} heads cannot share a width of {d_model}: they must divide it")
    return dict(d_model=d_model, num_heads=count, key_size=d_model // count, value_size=d_model // count)


def linear(
    ours: str,
    theirs: str,
    kind: Literal["linear", "matrix"] = "linear",
    inputs: int = 1,
    *,
    may_be_zero: bool = False,
) -> tuple[Tensor, ...]:
    """Kernel and bias of a linear map."""
    return (
        Tensor(f"{ours}/kernel", f"{theirs}.weight", kind, inputs, may_be_zero=may_be_zero),
        Tensor(f"{ours}/bias", f"{theirs}.bias", "vector"),
    )


def layer_norm(ours: str, theirs: str) -> tuple[Tensor, ...]:
    """Scale and bias of a LayerNorm."""
    return (Tensor(f"{ours}/scale", f"{theirs}.weight"), Tensor(f"{ours}/bias", f"{theirs}.bias"))


def attention(ours: str, query: str, key: str, value: str, output: str) -> tuple[Tensor, ...]:
    """The four projections of a multi-head attention."""
    inward = {"query": query, "key": key, "value": value}
    return (
        *(tensor for name, theirs in inward.items() for tensor in linear(f"{ours}/{name}", theirs)),
        *linear(f"{ours}/output", output, inputs=2),
    )
