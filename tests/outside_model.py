"""A model of another kind, as a program outside the library adds it: the worked example of an extension.

The model reads a seismogram, arrays (frames, channels) of numbers, and writes a bulletin, a text. It has a
front end, an attention, a head, an objective and a family of its own. The library does not know their names:
``register`` puts them into its registries, and a program calls it before it reads a config.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transformer_jax.config import ConfigError, check_types
from transformer_jax.families import FAMILIES, Checkpoint, Family, Tensor
from transformer_jax.families.base import attention, heads, layer_norm, linear
from transformer_jax.families.layouts import LINEAR
from transformer_jax.layers.linear import Linear
from transformer_jax.layers.masks import Segments
from transformer_jax.layers.positions import PositionEncoding
from transformer_jax.models import TransformerConfig
from transformer_jax.models.attention import ATTENTIONS, AttentionSpec, FullAttention
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.front_ends import FRONT_ENDS, FrontEnd
from transformer_jax.models.front_ends.base import normalise_and_drop
from transformer_jax.models.heads import HEADS, Head, Output, TokenLogits, dense
from transformer_jax.models.stack_config import StackConfig
from transformer_jax.objectives import OBJECTIVES, ModelFacts, TokenObjective
from transformer_jax.types import FEATURES, KINDS, Drawing, Encoder, Example, Kind, TokenExample

# The front end


class EmbedSeismograms(nn.Module):
    """Maps each patch of consecutive frames to a vector, and adds its position."""

    config: TransformerConfig
    front_end: "Seismograms"
    embedding: None = None  # there is no vocabulary

    @nn.compact
    def embed(self, arguments: Mapping[str, jax.Array], *, train: bool) -> Embedded:
        """Returns the input of the first block, with segment 0 on patches of padding."""
        config, front_end, dtype = self.config, self.front_end, jnp.dtype(self.config.dtype)
        frames = jnp.asarray(arguments["seismogram"], dtype)
        rows, size = len(frames), front_end.patch_frames * front_end.num_channels
        x = frames.reshape(rows, front_end.num_patches, size)
        x = Linear((size,), (config.d_model,), ("patch", "embed"), True, dtype, name="patches")(x)
        positions = PositionEncoding(config.positions, x.shape[1], config.d_model, dtype, name="positions")
        x = normalise_and_drop(config, x + positions(x.shape[1]), train)
        if "seismogram_length" not in arguments:
            return Embedded(x, None, None, arguments)
        starts = front_end.patch_frames * jnp.arange(front_end.num_patches)
        is_real = starts[None, :] < jnp.asarray(arguments["seismogram_length"])[:, None]
        return Embedded(x, is_real.astype(jnp.int32), None, arguments)


@dataclasses.dataclass(frozen=True)
class Seismograms(FrontEnd):
    """Seismograms of up to ``num_frames`` frames, padded to that length and cut into patches."""

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("seismogram", "seismogram_length")
    FEATURE: ClassVar[str] = "seismogram"
    UNIT: ClassVar[str] = "seismograms"

    kind: str = dataclasses.field(default="seismograms", kw_only=True)
    num_frames: int = 12
    num_channels: int = 2
    patch_frames: int = 3

    def __post_init__(self) -> None:
        check_types(self, "model.front_end")
        if min(self.num_channels, self.patch_frames) < 1 or self.num_frames % self.patch_frames:
            raise ConfigError(
                f"model.front_end.patch_frames={self.patch_frames} must divide "
                f"model.front_end.num_frames={self.num_frames}"
            )

    @property
    def num_patches(self) -> int:
        return self.num_frames // self.patch_frames

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.num_frames, self.num_channels)

    def build(self, config: TransformerConfig) -> EmbedSeismograms:
        return EmbedSeismograms(config, self, name="embed_seismograms")

    def check(self, config: TransformerConfig) -> None:
        if config.positions == "relative":
            raise ConfigError("model.positions='relative' does not go with seismograms: use 'learned'")

    def example_inputs(self, config: TransformerConfig) -> dict[str, Any]:
        return {"seismogram": jnp.zeros((1, *self.input_shape), jnp.float32)}

    def draw_inputs(
        self, config: TransformerConfig, rng: np.random.Generator, lengths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        frames = rng.normal(0, 1, (len(lengths), *self.input_shape)).astype(np.float32)
        return {
            "seismogram": frames,
            "seismogram_length": rng.integers(1, self.num_frames + 1, len(lengths), np.int32),
        }

    def length(self, config: TransformerConfig, batch: Mapping[str, Any]) -> int:
        return self.num_patches

    def operations(self, config: TransformerConfig) -> int:
        return 2 * self.num_frames * self.num_channels * config.d_model

    def is_alike(self, other: FrontEnd) -> bool:
        return isinstance(other, Seismograms)


# The attention


class FadingAttention(nn.Module):
    """Computes ``y_i = sum_{j <= i} decay^(i - j) (q_i . k_j) v_j``: retention (Sun et al. 2023, section 2).

    The cache is the sum ``sum_j decay^(i - j) k_j v_j^T`` (B, H, K, V), whatever the number of positions.
    """

    config: StackConfig
    decay: float

    @nn.nowrap
    def init_cache(self, rows: int, length: int) -> jax.Array:
        config = self.config
        return jnp.zeros((rows, config.num_heads, config.key_size, config.value_size), jnp.float32)

    @nn.compact
    def __call__(self, x, context=None, *, mask, bias=None, cache=None, position=None, train):
        config, length = self.config, x.shape[1]
        query = self._heads("query", config.key_size)(x) * config.key_size**-0.5
        key = self._heads("key", config.key_size)(x)
        value = self._heads("value", config.value_size)(x)
        steps = jnp.arange(length)
        distances = steps[:, None] - steps[None, :]
        weights = jnp.where(distances >= 0, self.decay ** jnp.maximum(distances, 0), 0.0)[None, None]
        if cache is None:
            weights = jnp.where(mask.to_array(length, length), weights, 0.0)
        elif (padding := mask.part(Segments)) is not None:  # of prompts of different lengths
            is_real = lax.dynamic_slice_in_dim(padding.key, position, length, axis=1) > 0
            key = jnp.where(is_real[:, :, None, None], key, 0.0)
        scores = jnp.einsum("blhk,bshk->bhls", query, key) * weights
        y = jnp.einsum("bhls,bshv->blhv", scores, value)
        if cache is not None:
            to_cache = (self.decay ** (steps + 1.0))[None, :, None, None]
            y += jnp.einsum("blhk,bhkv->blhv", query * to_cache, cache)
            to_end = (self.decay ** (length - 1.0 - steps))[None, :, None, None]
            cache = self.decay**length * cache + jnp.einsum("bshk,bshv->bhkv", key * to_end, value)
        return self._output()(y), cache

    def _heads(self, name: str, size: int) -> Linear:
        config = self.config
        outputs = (config.num_heads, size)
        axes = ("embed", "heads", "head_size")
        return Linear((config.d_model,), outputs, axes, False, jnp.dtype(config.dtype), name=name)

    def _output(self) -> Linear:
        config = self.config
        inputs = (config.num_heads, config.value_size)
        axes = ("heads", "head_size", "embed")
        return Linear(inputs, (config.d_model,), axes, False, jnp.dtype(config.dtype), name="output")


@dataclasses.dataclass(frozen=True)
class Fading(AttentionSpec):
    """Attention whose weights fade by the factor ``decay`` a position, for decoders."""

    kind: str = "fading"
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"model.attention.decay={self.decay} must be between 0 and 1")

    def build(self, config: StackConfig, layer: int) -> FadingAttention:
        return FadingAttention(config, self.decay)

    def operations(self, config: StackConfig, queries: int, keys: int) -> int:
        """Returns the operations of the projections, of all pairs of new positions, and of the cache."""
        both = config.key_size + config.value_size
        per_query = 2 * both * config.d_model + queries * both
        if keys > queries:  # there is a cache, which is read and written
            per_query += 2 * config.key_size * config.value_size
        return 2 * queries * config.num_heads * per_query


# The head


class NarrowLogits(TokenLogits):
    """Returns the logits of a product with two thin matrices, d_model x d_model / 2 and d_model / 2 x V."""

    @nn.compact
    def __call__(self, x, embedding):
        config = self.config
        x = dense(config, config.output_size, config.d_model // 2, "embed", "narrow", use_bias=False)(x)
        axes = ("embed", "vocab")
        sizes = (config.d_model // 2,), (config.vocab_size,)
        return Linear(*sizes, axes, False, jnp.dtype(jnp.float32), name="wide")(x)


def narrow_operations(config: TransformerConfig, length: int) -> int:
    return 2 * length * (config.d_model // 2) * (config.output_size + config.vocab_size)


NARROW = Head(NarrowLogits, (Output("logits", True),), narrow_operations, part="decoder")

# The objective, and the kind of value that it reads


def read_frames(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def is_seismogram(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == np.float32 and len(value) > 0


SEISMOGRAM = Kind(
    "a seismogram, an array (frames, channels) of numbers,",
    is_seismogram,
    lambda shape: np.zeros(shape, np.float32),
    from_plain=read_frames,
)


@dataclasses.dataclass(frozen=True)
class Bulletins(TokenObjective):
    """Predicts the bulletin of a seismogram, whose amplitude is another one at every visit.

    Attributes:
      num_frames: the number of frames that the model reads.
      amplitudes: the amplitude is multiplied by a factor between 1 / amplitudes and amplitudes.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("seismogram", "targets")
    HEADS: ClassVar[tuple[str, ...]] = ("narrow_tokens",)
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("seismogram", "seismogram_length", "targets")

    name: str = "bulletins"
    num_frames: int = 12
    amplitudes: float = 2.0

    def check(self, model: ModelFacts) -> None:
        if model.shape[0] != self.num_frames:
            raise ConfigError(
                f"config.objective.num_frames={self.num_frames} must be {model.shape[0]}, as the model reads"
            )

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        frames = example["seismogram"]
        if len(frames) > self.num_frames:
            raise ValueError(f"a seismogram of {len(frames)} frames is longer than {self.num_frames}: cut it")
        padded = np.zeros((self.num_frames, frames.shape[1]), np.float32)
        padded[: len(frames)] = frames
        targets = tokenizer.targets.encode_whole(example["targets"])
        return {
            "seismogram": padded,
            "seismogram_length": np.array(len(frames), np.int32),
            "targets": targets,
        }

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        if not context.train:
            return [tokens]
        factor = np.float32(self.amplitudes ** context.rng.uniform(-1, 1))
        return [{**tokens, "seismogram": factor * tokens["seismogram"]}]


# The family

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(num_encoder_layers=1, num_decoder_layers=2, d_feedforward=24, **heads(2, 16)),
    "base": dict(num_encoder_layers=6, num_decoder_layers=6, d_feedforward=2048, **heads(8, 512)),
}

FIXED: dict[str, Any] = dict(
    front_end=Seismograms(),
    # Fading and full attention take turns in the decoder.
    decoder_changes=(("attention", (Fading(), FullAttention())),),
    positions="learned",
    norm_position="pre",
    share_embeddings="none",
    embedding_scale="none",
    head="narrow_tokens",
)

DEFAULTS: dict[str, Any] = dict(max_length=64, dropout=0.1)


def _layers(stack: str, *names: str) -> tuple[Tensor, ...]:
    ours, theirs = f"{stack}/layer_{{i}}", f"{stack}.{{i}}"
    tensors: list[Tensor] = []
    for name in names:
        parts = (f"{theirs}.{name}.{part}" for part in ("query", "key", "value", "output"))
        tensors += attention(f"{ours}/{name}", *parts)
        tensors += layer_norm(f"{ours}/{name}_norm", f"{theirs}.{name}_norm")
    for part in ("hidden", "output"):
        tensors += linear(f"{ours}/feedforward/{part}", f"{theirs}.feedforward.{part}")
    return (
        *tensors,
        *layer_norm(f"{ours}/feedforward_norm", f"{theirs}.feedforward_norm"),
        *layer_norm(f"{stack}/final_norm", f"{stack}.final_norm"),
    )


def _read(config: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    sizes = {name: config[name] for name in ("num_frames", "num_channels", "patch_frames")}
    return sizes | heads(config["num_heads"], config["d_model"])


def _write(config: TransformerConfig) -> dict[str, Any]:
    front_end = dataclasses.asdict(config.front_end)
    del front_end["kind"]
    return front_end | {"num_heads": config.num_heads}


_SAME_NAMES = (
    *("vocab_size", "d_model", "num_encoder_layers", "num_decoder_layers", "d_feedforward", "max_length"),
    *("pad_id", "decoder_start_id", "eos_id", "dropout"),
)

TREMOR = Family(
    "tremor",
    VARIANTS,
    FIXED,
    DEFAULTS,
    Checkpoint(
        model_type="tremor",
        fields=tuple((name, name) for name in _SAME_NAMES),
        tensors=(
            *linear("embed_seismograms/patches", "patches"),
            Tensor("embed_seismograms/positions/embedding", "patch_positions.weight"),
            Tensor("target_embedding/embedding", "words.weight"),
            Tensor("embed_targets/positions/embedding", "word_positions.weight"),
            *_layers("encoder", "self_attention"),
            *_layers("decoder", "self_attention", "context_attention"),
            *(
                Tensor(f"logits/{part}/kernel", f"logits.{part}.weight", LINEAR)
                for part in ("narrow", "wide")
            ),
        ),
        architectures={"narrow_tokens": "TremorForBulletins"},
        read=_read,
        write=_write,
        heads=(("narrow_tokens", ()),),
    ),
    vocab_size=260,
)


def register() -> None:
    """Adds all of this to the library; may be called again."""
    KINDS["seismogram"] = SEISMOGRAM
    FEATURES["seismogram"] = ("seismogram",)
    FRONT_ENDS["seismograms"] = Seismograms
    ATTENTIONS["fading"] = Fading
    HEADS["narrow_tokens"] = NARROW
    OBJECTIVES["bulletins"] = Bulletins
    FAMILIES["tremor"] = TREMOR
