"""Front ends: positions that skip padding, a front end from outside the package, and configs with one."""

import dataclasses
import functools
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests.drawn import drawn_params
from transformer_jax.config import ConfigError, read_section
from transformer_jax.layers.positions import PositionEncoding
from transformer_jax.models import abstract_params
from transformer_jax.models.embedded import Embedded
from transformer_jax.models.front_ends import FRONT_ENDS, FrontEnd, Patches, Tokens
from transformer_jax.models.front_ends.tokens import positions_in_segments
from transformer_jax.planning.model_flops import model_flops
from transformer_jax.sharding.partitioning import unbox

SIZES: dict[str, Any] = dict(d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=24)
BERT = tj.families.bert.config(
    "tiny", **SIZES, vocab_size=40, num_encoder_layers=1, max_length=9, head="none"
)
ROBERTA = dataclasses.replace(
    BERT, pad_id=1, num_token_types=0, front_end=Tokens(position_offset=2, positions_skip_padding=True)
)
SEGMENTS = np.array(
    [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 2, 2, 2, 3, 0, 0], [0, 0, 1, 1, 0, 1, 2, 2], [1] * 8], np.int32
)


def counted(segments):
    """Positions by a loop: how many tokens of the same segment come before each token that is not padding."""
    positions = np.full(segments.shape, -1)
    for row, ids in enumerate(segments):
        for place, segment in enumerate(ids):
            if segment:
                positions[row, place] = (ids[:place] == segment).sum()
    return positions


def table_rows(config, **arguments):
    """The row of the table of positions that each token gets, in a table whose rows are their numbers."""
    config = dataclasses.replace(config, embedding_norm=False, num_encoder_layers=1)
    model, params = tj.build(config), drawn_params(config)
    table = params["embed_inputs"]["positions"]["embedding"]
    marked = jnp.broadcast_to(jnp.arange(len(table), dtype=jnp.float32)[:, None], table.shape)
    params["embed_inputs"]["positions"]["embedding"] = marked
    params["embedding"]["embedding"] *= 0

    def embed(model, arguments):
        return model.front_end.embed(arguments, train=False).x

    x = nn.apply(embed, model)({"params": params}, {key: jnp.asarray(v) for key, v in arguments.items()})
    return len(table), np.asarray(x[..., 0])


def test_positions_in_segments_are_those_of_a_loop():
    real = SEGMENTS > 0
    found = np.asarray(positions_in_segments(jnp.asarray(SEGMENTS)))
    np.testing.assert_array_equal(found[real], counted(SEGMENTS)[real])


@pytest.mark.parametrize("has_positions", [False, True])
def test_positions_skip_padding_and_begin_at_the_offset(has_positions):
    tokens = np.where(SEGMENTS > 0, 7, 1).astype(np.int32)
    arguments = {"inputs": tokens, "inputs_segments": SEGMENTS}
    if has_positions:  # as the pipeline packs rows
        arguments["inputs_positions"] = np.maximum(counted(SEGMENTS), 0).astype(np.int32)
    rows, found = table_rows(ROBERTA, **arguments)
    assert rows == 9 + 2
    np.testing.assert_array_equal(found, counted(SEGMENTS) + 2)  # padding has pad_id


def test_padding_is_recognised_by_its_id():
    tokens = np.array([[5, 6, 7, 1, 1], [1, 5, 1, 6, 7]], np.int32)
    _, found = table_rows(ROBERTA, inputs=tokens)
    np.testing.assert_array_equal(found, [[2, 3, 4, 1, 1], [1, 2, 1, 3, 4]])


def test_an_offset_alone_counts_all_tokens():
    tokens = np.array([[5, 6, 1, 7]], np.int32)
    plain = dataclasses.replace(ROBERTA, front_end=Tokens(position_offset=3))
    rows, found = table_rows(plain, inputs=tokens)
    assert rows == 12
    np.testing.assert_array_equal(found, [[3, 4, 5, 6]])


def test_a_decoder_alone_skips_padding_too():
    config = tj.families.gpt2.config(
        "small", **SIZES, vocab_size=30, max_length=9, num_decoder_layers=1, eos_id=2, decoder_start_id=2,
        front_end=Tokens(position_offset=2, positions_skip_padding=True),
    )  # fmt: skip
    params = drawn_params(config)
    apply = jax.jit(tj.build(config).apply)
    alone = apply({"params": params}, jnp.array([[5, 6, 7, 8]]))
    tokens, segments = jnp.array([[9, 9, 5, 6, 9, 7, 8]]), jnp.array([[0, 0, 1, 1, 0, 1, 1]])
    padded = apply({"params": params}, tokens, inputs_segments=segments)
    np.testing.assert_allclose(padded[:, segments[0] > 0], alone, rtol=1e-5, atol=1e-5)


def test_relative_positions_may_be_those_of_the_decoder_after_patches():
    config = dataclasses.replace(
        BERT, num_decoder_layers=1, head="tokens", front_end=Patches((8, 8, 1), 4), num_token_types=0
    )
    changes = ("positions", "relative"), ("max_length", 7)
    for changed in (
        dataclasses.replace(config, decoder_changes=changes),
        dataclasses.replace(config, positions="relative", encoder_changes=(("positions", "learned"),)),
    ):
        params = unbox(abstract_params(changed))
        assert params["embed_patches"]["positions"]["embedding"].shape == (5, 16)
        assert "relative_bias" in params["decoder"] and "relative_bias" not in params["encoder"]
    with pytest.raises(ConfigError, match="positions='relative' does not go with images"):
        dataclasses.replace(config, encoder_changes=changes)


def test_positions_of_an_unknown_kind_are_an_error():
    encoding = PositionEncoding("relative", 9, 16, jnp.dtype("float32"))
    with pytest.raises(ValueError, match="kind='relative' of positions has no vectors; sinusoidal"):
        encoding.init(jax.random.key(0), 3)


@dataclasses.dataclass(frozen=True)
class Series(FrontEnd):
    """A front end from outside: numbers, a linear map of each."""

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("series",)
    FEATURE: ClassVar[str] = "series"
    UNIT: ClassVar[str] = "series"

    kind: str = "series"
    num_steps: int = 5

    def build(self, config):
        return EmbedSeries(config, name="embed_series")

    def example_inputs(self, config):
        return {"series": jnp.zeros((1, self.num_steps))}

    def length(self, config, batch):
        return self.num_steps

    def operations(self, config):
        return 2 * self.num_steps * config.d_model


class EmbedSeries(nn.Module):
    config: tj.TransformerConfig
    embedding: None = None

    @nn.compact
    def embed(self, arguments, *, train):
        x = nn.Dense(self.config.d_model, name="steps")(arguments["series"][..., None])
        return Embedded(x, None, None, arguments)


@pytest.fixture
def series(monkeypatch):
    monkeypatch.setitem(FRONT_ENDS, "series", Series)
    return Series()


def test_a_front_end_from_outside_before_an_encoder(series):
    config = dataclasses.replace(BERT, vocab_size=0, num_token_types=0, front_end=series, head="none")
    model = tj.build(config)
    variables, apply = {"params": drawn_params(config)}, jax.jit(model.apply)
    assert variables["params"].keys() == {"embed_series", "encoder"}
    first, other = (apply(variables, series=jnp.full((2, 5), value)) for value in (1.0, -1.0))
    assert first.shape == (2, 5, 16) and not np.allclose(first, other)
    with pytest.raises(
        ValueError, match="a model of series and was given inputs: give it series, and nothing"
    ):
        model.apply(variables, jnp.zeros((1, 5), jnp.int32))
    batch = {"series": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
    layer = 4 * 16 * 16 + 2 * 16 * 24 + 2 * 5 * 16
    assert model_flops(config, batch, train=False) == 3 * 2 * 5 * (layer + 16)


def test_a_front_end_from_outside_before_an_encoder_and_a_decoder(series):
    sizes = SIZES | dict(num_encoder_layers=1, num_decoder_layers=1)
    config = tj.families.transformer.config("tiny", **sizes, vocab_size=30, max_length=9)
    config = dataclasses.replace(config, front_end=series)
    model = tj.build(config)
    targets = jnp.array([[4, 5, 6], [7, 8, 2]])
    variables = jax.jit(model.init)(jax.random.key(0), series=jnp.zeros((2, 5)), targets=targets)
    assert variables["params"].keys() == {"embed_series", "target_embedding", "encoder", "decoder"}
    numbers = jnp.linspace(0.0, 1.0, 10).reshape(2, 5)
    logits = jax.jit(model.apply)(variables, series=numbers, targets=targets)
    encode, decode_step = (
        jax.jit(functools.partial(model.apply, method=method)) for method in ("encode_context", "decode_step")
    )
    context = encode(variables, series=numbers)
    cache, previous = model.init_cache(2, 3), jnp.full((2,), config.decoder_start_id)
    for place in range(3):
        step, cache = decode_step(variables, previous, context, cache)
        np.testing.assert_allclose(step, logits[:, place], rtol=1e-4, atol=1e-4)
        previous = targets[:, place]


def test_a_config_is_read_with_the_front_end_of_its_kind(series):
    for front_end in (ROBERTA.front_end, Patches((12, 8, 1), 4), series):
        config = dataclasses.replace(
            BERT,
            front_end=front_end,
            max_length=front_end.max_length or 9,
            **({} if front_end.has_tokens else dict(vocab_size=0, num_token_types=0)),
        )
        assert read_section(type(config), dataclasses.asdict(config), "model") == config


@pytest.mark.parametrize(
    ("front_end", "message"),
    [
        ({"kind": "patchs"}, "config.model.front_end.kind='patchs' is unknown: did you mean 'patches'?"),
        ("tokens", "config.model.front_end.kind=None is unknown: it has tokens, patches"),
        ({"kind": "patches", "image_shape": [12, 8, 1], "patch_sise": 4}, "did you mean 'patch_size'?"),
        (
            {"kind": "patches", "image_shape": [12, 8, 1], "patch_size": 5},
            "patch_size=5 must divide the height",
        ),
        (dataclasses.asdict(Tokens()) | {"position_offset": -1}, "position_offset=-1 must be at least 0"),
    ],
    ids=str,
)
def test_a_front_end_that_cannot_be_is_refused(front_end, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_section(type(BERT), dataclasses.asdict(BERT) | {"front_end": front_end}, "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(front_end=Patches()), "model.max_length=9 must be 197"),
        (dict(front_end=Patches(), max_length=197, vocab_size=40), "model.vocab_size=40 and"),
        (dict(front_end=Patches(), max_length=197, head="spans"), "model.head='spans' is for tokens"),
        (
            dict(front_end=Patches(), num_encoder_layers=0, num_decoder_layers=1, head="tokens"),
            "needs an encoder",
        ),
        (
            dict(front_end=Tokens(position_offset=2), vocab_size=40, positions="relative"),
            "has none: set it to 0",
        ),
        (dict(front_end=Patches(), max_length=197, positions="relative"), "does not go with images"),
        (
            dict(front_end=Tokens(position_offset=2), vocab_size=40, num_decoder_layers=1, head="tokens"),
            "position_offset=2 is for an encoder or a decoder alone",
        ),
    ],
    ids=str,
)
def test_a_front_end_that_does_not_fit_the_rest_is_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(BERT, **{"vocab_size": 0, "num_token_types": 0, **changes})


def test_images_may_be_bytes():
    config = tj.families.vit.config(
        "Ti/16", **SIZES, image_shape=(32, 32, 1), head="none", num_encoder_layers=1
    )
    model, rng = tj.build(config), np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    variables, apply = {"params": drawn_params(config)}, jax.jit(model.apply)
    expected = apply(variables, images=jnp.asarray(images / np.float32(127.5) - 1, jnp.float32))
    np.testing.assert_allclose(apply(variables, images=jnp.asarray(images)), expected, atol=1e-5)
