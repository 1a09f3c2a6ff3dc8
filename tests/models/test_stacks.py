"""Encoders unlike their decoders, by config alone; attention and residual strategies from outside."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import transformer_jax as tj
from tests.drawn import drawn_params
from transformer_jax.config import ConfigError, read_section
from transformer_jax.decoding import DecodingSettings, Generator
from transformer_jax.layers.feedforward import FeedForward
from transformer_jax.layers.norms import LayerNorm
from transformer_jax.models import abstract_params, evaluation_keys, training_keys
from transformer_jax.models.attention import ATTENTIONS, AttentionSpec, FullAttention
from transformer_jax.models.front_ends import Patches
from transformer_jax.models.residual import RESIDUALS, Residual
from transformer_jax.planning.model_flops import model_flops

SIZES = dict(vocab_size=23, d_model=16, num_heads=2, key_size=4, value_size=6, d_feedforward=24)
LAYERS = dict(num_encoder_layers=2, num_decoder_layers=3)
SOURCE = jnp.array([[5, 9, 7, 11, 2], [8, 6, 3, 5, 2]])
TARGET = jnp.array([[12, 13, 14, 2], [14, 15, 16, 2]])
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)

# As Whisper has it: two kinds of positions of two lengths, and biases without that of the keys.
UNLIKE = tj.TransformerConfig(
    **SIZES,
    **LAYERS,
    dropout=0.0,
    biases=("query", "value", "output", "feedforward"),
    encoder_changes=(("positions", "sinusoidal"), ("max_length", 64), ("num_heads", 4)),
    decoder_changes=(("positions", "learned"), ("max_length", 16), ("d_feedforward", 40)),
)


def plain(config):
    return json.loads(json.dumps(dataclasses.asdict(config)))


def cached_logits(config, params, source=SOURCE, target=TARGET):
    """Logits by one decoding step after the other, from a cache that is longer than needed."""
    model, keys = tj.build(config), evaluation_keys(config)
    apply = functools.partial(model.apply, {"params": params}, rngs=keys)
    context = jax.jit(functools.partial(apply, method="encode_context"))(source)
    cache = model.init_cache(len(source), target.shape[1] + 2)
    step = jax.jit(functools.partial(apply, method="decode_step"))
    tokens, found = jnp.full(len(source), config.decoder_start_id), []
    for position in range(target.shape[1]):
        logits, cache = step(tokens, context, cache)
        found.append(logits)
        tokens = target[:, position]
    return jnp.stack(found, axis=1)


@functools.cache
def unlike_params():
    return drawn_params(UNLIKE)


def full_logits(config, params, source=SOURCE, target=TARGET):
    apply = jax.jit(tj.build(config).apply)
    return apply({"params": params}, inputs=source, targets=target, rngs=evaluation_keys(config))


def test_encoder_and_decoder_differ_in_what_a_config_says():
    params = unlike_params()
    encoder, decoder = params["encoder"]["layer_1"], params["decoder"]["layer_2"]
    assert encoder["self_attention"]["query"]["kernel"].shape == (16, 4, 4)
    assert decoder["self_attention"]["query"]["kernel"].shape == (16, 2, 4)
    assert encoder["feedforward"]["hidden"]["kernel"].shape == (16, 24)
    assert decoder["feedforward"]["hidden"]["kernel"].shape == (16, 40)
    assert params["embed_targets"]["positions"]["embedding"].shape == (16, 16)
    assert "embed_inputs" not in params  # sinusoids have no parameters
    for attention in (
        encoder["self_attention"],
        decoder["self_attention"],
        decoder["context_attention"],
    ):
        assert {name for name, part in attention.items() if "bias" in part} == {"query", "value", "output"}
    source = jnp.tile(SOURCE, (1, 12))  # 60 tokens
    close(cached_logits(UNLIKE, params, source), full_logits(UNLIKE, params, source))
    with pytest.raises(ValueError, match="17 tokens is longer than the model's 16"):
        full_logits(UNLIKE, params, target=jnp.ones((2, 17), jnp.int32))
    with pytest.raises(ValueError, match="65 tokens is longer than the model's 64"):
        full_logits(UNLIKE, params, source=jnp.ones((2, 65), jnp.int32))


def test_such_a_model_learns():
    apply, optimizer = tj.build(UNLIKE).apply, optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = apply({"params": params}, inputs=SOURCE, targets=TARGET, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, TARGET).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, gradient

    params = unlike_params()
    state = optimizer.init(params)
    losses = []
    for _ in range(4):
        params, state, value, gradient = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.5
    is_used = jax.tree.map(lambda leaf: bool(jnp.any(leaf != 0)), gradient)
    assert all(jax.tree.leaves(is_used))


def test_generated_outputs_have_the_lengths_of_their_stacks():
    settings = DecodingSettings(beam_size=3)
    generator = Generator(UNLIKE, settings, 23, output_length=lambda _: 99, batch_size=4)
    params = unlike_params()
    outputs = generator.generate(params, [np.full(60, 7, np.int32), np.full(3, 8, np.int32)])
    assert max(map(len, outputs)) <= 16
    with pytest.raises(ValueError, match="sequence 1 has 65 tokens, the model takes 1 to 64"):
        generator.generate(params, [np.full(65, 7, np.int32)])


def test_batches_have_a_length_that_both_stacks_accept():
    config = dataclasses.replace(UNLIKE, head="tokens")
    assert (config.inputs_max_length, config.targets_max_length, config.batch_max_length) == (64, 16, 16)
    alone = dataclasses.replace(config, num_encoder_layers=0, share_embeddings="target")
    assert (alone.inputs_max_length, alone.batch_max_length) == (16, 16)
    assert config.batch_max_length_keys == "max_length in config.model.decoder_changes"
    longer = dataclasses.replace(config, decoder_changes=())
    assert longer.batch_max_length_keys == "max_length in config.model.encoder_changes"
    both = dataclasses.replace(longer, max_length=64)
    assert both.batch_max_length_keys == f"{longer.batch_max_length_keys} and config.model.max_length"
    same = dataclasses.replace(both, encoder_changes=())
    assert same.batch_max_length_keys == "config.model.max_length"
    # A batch has the length of its targets if the inputs are an image's 5 patches.
    images = dataclasses.replace(
        longer, front_end=Patches((8, 8, 1), 4), encoder_changes=(("max_length", 5),)
    )
    assert (images.batch_max_length, images.batch_max_length_keys) == (512, "config.model.max_length")


def test_operations_are_those_of_both_stacks():
    def product(tokens, *sizes):
        return 2 * tokens * int(np.prod(sizes))

    source, target = 10, 6
    batch = {
        "inputs": jax.ShapeDtypeStruct((1, source), jnp.int32),
        "targets": jax.ShapeDtypeStruct((1, target), jnp.int32),
    }
    encoder = product(source, 16, 4, 2 * (4 + 6)) + product(source, source, 4, 4 + 6)
    encoder += product(source, 16, 24, 2)
    decoder = product(target, 16, 2, 2 * (4 + 6)) + product(target, target, 2, 4 + 6)
    decoder += product(target, 16, 2, 4 + 6) + product(source, 16, 2, 4 + 6)
    decoder += product(target, source, 2, 4 + 6) + product(target, 16, 40, 2)
    expected = 2 * encoder + 3 * decoder + product(target, 16, 23)
    assert model_flops(UNLIKE, batch, train=False) == expected


def test_a_config_with_changes_goes_through_json_and_back():
    config = dataclasses.replace(
        UNLIKE, decoder_changes=(("attention", (FullAttention(),)), ("dropout", 0.5))
    )
    for one in (UNLIKE, config):
        assert read_section(tj.TransformerConfig, plain(one), "model") == one
        values = ml_collections.ConfigDict(dataclasses.asdict(one))
        assert read_section(tj.TransformerConfig, values, "model") == one
        assert hash(one) == hash(read_section(tj.TransformerConfig, plain(one), "model"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_changes": (("num_head", 2),)}, "encoder_changes cannot change 'num_head': .*'num_heads'"),
        ({"encoder_changes": (("d_model", 8),)}, "encoder_changes cannot change 'd_model'"),
        ({"decoder_changes": (("num_heads", 0),)}, "decoder_changes: model.num_heads=0 must be at least 1"),
        ({"decoder_changes": (("num_heads", "2"),)}, "decoder_changes, num_heads must be int, not '2'"),
        ({"decoder_changes": (("num_heads", 2), ("num_heads", 4))}, "names 'num_heads' twice"),
        ({"biases": ("keys",)}, "biases must be"),
        ({"biases": "al"}, "biases must be .*did you mean 'all'"),
        ({"attention": ()}, "attention=.. names no attention"),
        (
            {"attention": (FullAttention(), FullAttention()), "scan_layers": True},
            "set model.scan_layers=False",
        ),
        ({"residual": "plane"}, "residual='plane' is no residual strategy: did you mean 'plain'"),
    ],
)
def test_what_stacks_cannot_have_is_one_clear_error(changes, message):
    values = dataclasses.asdict(tj.TransformerConfig(**SIZES))
    with pytest.raises(ConfigError, match=message):
        read_section(tj.TransformerConfig, values | changes, "model")


def test_a_pattern_with_more_specs_than_layers_is_an_error():
    config = tj.TransformerConfig(**SIZES, **LAYERS, attention=(FullAttention(),) * 3)
    with pytest.raises(ConfigError, match="has 3 specs, but there are only 2 layers"):
        tj.build(config).init(jax.random.key(0), **tj.example_inputs(config))


def test_an_unknown_kind_of_attention_is_an_error():
    values = plain(UNLIKE) | {"attention": [{"kind": "ful"}]}
    with pytest.raises(ConfigError, match=r"model\.attention\.kind='ful' is unknown: did you mean 'full'"):
        read_section(tj.TransformerConfig, values, "model")


# From outside: an attention that mixes random projections of the states it may see, without keys or values.


class RandomMeans(nn.Module):
    """Returns ``mean_j(x_j) R W``, where j are the positions that the mask allows, and R is random."""

    d_model: int
    layer: int

    def init_cache(self, rows, length):
        return {"states": jnp.zeros((rows, length, self.d_model)), "layer": jnp.full((rows,), self.layer)}

    @nn.compact
    def __call__(self, x, context=None, *, mask, bias=None, cache=None, position=None, train):
        assert context is None
        states = x
        if cache is not None:
            states = jax.lax.dynamic_update_slice(cache["states"], x, (0, position, 0))
            cache = cache | {"states": states}
        random = jax.random.normal(self.make_rng("mixing"), (self.d_model, self.d_model))
        allowed = mask.to_array(x.shape[1], states.shape[1])[:, 0].astype(x.dtype)
        means = (allowed @ states) / allowed.sum(axis=-1, keepdims=True)
        return nn.Dense(self.d_model, use_bias=False, name="output")(means @ random), cache


@dataclasses.dataclass(frozen=True)
class RandomMeansSpec(AttentionSpec):
    STREAMS = ("mixing",)
    kind: str = "random_means"
    factor: float = 1.0

    def build(self, config, layer):
        return RandomMeans(config.d_model, layer)

    def operations(self, config, queries, keys):
        return 1_000_000 * queries + keys


@pytest.fixture
def random_means(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "random_means", RandomMeansSpec)
    return RandomMeansSpec(factor=0.5)


def mixed(spec, **changes):
    return tj.TransformerConfig(**SIZES, **LAYERS, max_length=12, attention=spec, dropout=0.0, **changes)


def test_a_pattern_is_repeated_over_the_layers(random_means):
    config = mixed((FullAttention(), random_means))
    assert read_section(tj.TransformerConfig, plain(config), "model") == config
    decoder = abstract_params(config)["decoder"]
    kinds = [set(decoder[f"layer_{layer}"]["self_attention"]) for layer in range(3)]
    assert kinds == [{"query", "key", "value", "output"}, {"output"}, {"query", "key", "value", "output"}]
    batch = {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("inputs", "targets")}
    full = model_flops(mixed((FullAttention(),)), batch, train=False)
    of_one = FullAttention().operations(config.encoder, 4, 4)
    assert model_flops(config, batch, train=False) == full + 2 * (4_000_004 - of_one)


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.everything), True])
def test_an_attention_owns_its_cache(random_means, scan_layers):
    spec = (random_means,) if scan_layers else (random_means, FullAttention())
    config = mixed(spec, scan_layers=scan_layers)
    params = drawn_params(config)
    expected = full_logits(config, params)
    close(cached_logits(config, params), expected)
    # Beam search must give every hypothesis the cache of its parent: with another's, the scores differ.
    settings = DecodingSettings(beam_size=3, length_penalty=0.0)
    generator = Generator(config, settings, 23, output_length=lambda _: 4, batch_size=4)
    (output,) = generator.generate(params, [np.array(SOURCE[0])])
    best = best_by_full_passes(config, params, SOURCE[:1], beams=3, length=4)
    assert output.tolist() == best


def best_by_full_passes(config, params, source, beams, length):
    """Beam search that computes whole forward passes, in plain Python."""
    live, ended = [(0.0, [])], []
    apply = jax.jit(tj.build(config).apply)
    for _ in range(length):
        grown = []
        for score, tokens in live:
            target = jnp.array([[*tokens, 0] + [0] * (length - len(tokens) - 1)], jnp.int32)
            segments = jnp.ones_like(target)
            logits = apply(
                {"params": params}, inputs=source, targets=target, targets_segments=segments,
                rngs=evaluation_keys(config),
            )[0, len(tokens)]  # fmt: skip
            log_probs = np.array(jax.nn.log_softmax(logits))
            log_probs[config.pad_id] = -np.inf
            grown += [(score + float(log_p), [*tokens, token]) for token, log_p in enumerate(log_probs)]
        grown.sort(key=lambda one: -one[0])
        ended += [one for one in grown[:beams] if one[1][-1] == config.eos_id]
        live = [one for one in grown if one[1][-1] != config.eos_id][:beams]
        if len(ended) >= beams:
            break
    return max(ended, key=lambda one: one[0])[1] if ended else live[0][1]


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.everything), True])
def test_a_stream_is_read_in_evaluation_and_every_layer_draws_its_own(random_means, scan_layers):
    config = mixed((random_means,), scan_layers=scan_layers)
    params = drawn_params(config)
    apply = jax.jit(tj.build(config).apply)

    def logits(keys):
        return apply({"params": params}, inputs=SOURCE, targets=TARGET, rngs=keys)

    assert set(evaluation_keys(config)) == {"mixing"}
    np.testing.assert_array_equal(logits(evaluation_keys(config)), logits(evaluation_keys(config)))
    assert np.abs(logits(evaluation_keys(config)) - logits({"mixing": jax.random.key(9)})).max() > 1e-3
    keys = training_keys(config, jax.random.key(3))
    assert set(keys) == {"dropout", "mixing"}
    assert jax.random.key_data(keys["dropout"]).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    assert jax.random.key_data(keys["mixing"]).tolist() != jax.random.key_data(keys["dropout"]).tolist()
    if scan_layers:  # layers with equal parameters still draw different numbers
        equal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params["encoder"]["layers"])
        variables = {"params": params | {"encoder": {"layers": equal}}}
        encode = functools.partial(
            tj.build(config).apply, method="encode", mutable="intermediates",
            capture_intermediates=lambda module, _: isinstance(module, RandomMeans),
        )  # fmt: skip
        _, sown = jax.jit(encode)(variables, SOURCE, rngs=keys)
        first, second = jax.tree.leaves(sown["intermediates"]["encoder"]["layers"]["self_attention"])[0]
        ratio = np.linalg.norm(first - second) / np.linalg.norm(first)
        assert ratio > 0.5


def test_other_models_read_no_stream_in_evaluation():
    assert evaluation_keys(UNLIKE) == {} and set(training_keys(UNLIKE, jax.random.key(0))) == {"dropout"}


# From outside: two residual streams (Gomez et al. 2017), each sub-layer reading one and adding to the other.


class TwoStreams(Residual):
    WIDTH = 2

    def begin(self, x):
        return x, x

    def add(self, state, sublayer, norm, dropout):
        first, second = state
        return second, first + dropout(sublayer(norm(second)))

    def end(self, state):
        return jnp.concatenate(state, axis=-1)


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.everything), True])
def test_a_residual_strategy_from_outside(monkeypatch, scan_layers):
    monkeypatch.setitem(RESIDUALS, "two_streams", TwoStreams)
    config = tj.families.gpt2.config(
        "small", **SIZES, num_decoder_layers=2, max_length=12, eos_id=2, decoder_start_id=2, dropout=0.0,
        residual="two_streams", share_embeddings="none", scan_layers=scan_layers,
    )  # fmt: skip
    assert read_section(tj.TransformerConfig, plain(config), "model") == config
    params = drawn_params(config)
    assert params["decoder"]["final_norm"]["scale"].shape == (32,)
    assert params["logits"]["projection"]["kernel"].shape == (32, 23)
    model = tj.build(config)
    full = jax.jit(model.apply)({"params": params}, inputs=TARGET)
    prompt = tj.models.cache.PromptContext(jnp.zeros(2, jnp.int32))
    cache = model.init_cache(2, 6)
    step = jax.jit(functools.partial(model.apply, method="decode_step"))
    for position in range(4):
        logits, cache = step({"params": params}, TARGET[:, position], prompt, cache)
        close(logits, full[:, position])
    sow = jax.jit(functools.partial(model.apply, mutable="intermediates"))
    _, sown = sow({"params": params}, inputs=TARGET)
    layers, blocks = sown["intermediates"]["decoder"], params["decoder"]
    if scan_layers:
        before, after = layers["layers"]["block_output"][0]
        block = jax.tree.map(lambda leaf: leaf[1], blocks["layers"])
    else:
        before, after = (layers[f"layer_{layer}"]["block_output"][0] for layer in range(2))
        block = blocks["layer_1"]
    # The last sub-layer read the one stream and added to the other, which can be undone.
    one, two = jnp.split(after, 2, axis=-1)
    normed = LayerNorm(config.norm_epsilon, jnp.dtype("float32")).apply(
        {"params": block["feedforward_norm"]}, one
    )
    added = FeedForward(24, "gelu_tanh", True, 0.0, jnp.dtype("float32")).apply(
        {"params": block["feedforward"]}, normed, train=False
    )
    close(two - added, jnp.split(before, 2, axis=-1)[1])
    assert np.abs(added).max() > 1e-3
