"""The encoder–decoder against a NumPy oracle, and the properties that must hold for any parameters."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import transformer_jax as tj
from tests.drawn import drawn_params
from tests.models import reference
from transformer_jax.layers import dropout
from transformer_jax.layers.feedforward import FeedForward
from transformer_jax.models import abstract_params
from transformer_jax.sharding.partitioning import unbox

CONFIG = tj.families.transformer.config(
    "tiny", vocab_size=23, d_model=16, num_heads=2, key_size=4, value_size=6, d_feedforward=24, max_length=12,
    norm_epsilon=1e-3,
)  # fmt: skip
SOURCE = jnp.array([[5, 9, 7, 11, 2], [8, 6, 2, 0, 0], [4, 2, 0, 0, 0]])
TARGET = jnp.array([[12, 13, 2, 0], [14, 15, 16, 2], [17, 2, 0, 0]])
# Float32 sums of a few hundred terms of order 1 round off below 1e-5; bugs are of order 1e-2 and up.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def change(config=CONFIG, **changes):
    return dataclasses.replace(config, **changes)


@functools.cache
def parameters(config):
    """Of the model, with every bias and scale moved off its initial 0 or 1."""
    leaves, treedef = jax.tree.flatten({"params": drawn_params(config)})
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        treedef, [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    )


@functools.cache
def compiled(config):
    return jax.jit(tj.build(config).apply)


def forward(config, source=SOURCE, target=TARGET, variables=None, **arguments):
    variables = parameters(config) if variables is None else variables
    apply = tj.build(config).apply if "train" in arguments else compiled(config)
    return apply(variables, inputs=source, targets=target, **arguments)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        pytest.param(change(norm_position="pre"), marks=pytest.mark.everything),
        change(positions="learned"),
        pytest.param(change(scan_layers=True), marks=pytest.mark.everything),
        change(norm_position="pre", scan_layers=True),
    ],
    ids=["post", "pre", "learned", "scan", "pre-scan"],
)
def test_logits_equal_a_numpy_oracle(config):
    ours = forward(config)
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters(config)["params"])
    for row in range(len(SOURCE)):
        source, target = ([int(t) for t in side[row] if t != 0] for side in (SOURCE, TARGET))
        close(ours[row, : len(target)], reference.logits(tree, config, source, target))


def test_a_logit_depends_on_the_whole_source_and_on_targets_before_it_only():
    table = parameters(CONFIG)["params"]["embedding"]["embedding"]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(source_rows, target_rows, place):
        """Embeds each place of source and target by a row of its own, so that gradients tell them apart."""
        own = jnp.concatenate([table, source_rows, target_rows])
        variables = {"params": parameters(CONFIG)["params"] | {"embedding": {"embedding": own}}}
        config = change(vocab_size=len(own))
        source = 23 + jnp.arange(4)[None]
        target = 27 + jnp.arange(4)[None]
        return forward(config, source, target, variables)[0, place, :23].sum()

    rows = jax.random.normal(jax.random.key(1), (2, 4, 16))
    for place in range(4):
        to_source, to_target = gradients(rows[0], rows[1], place)
        assert np.abs(to_source).max(axis=1).min() > 1e-6
        depends = np.abs(to_target).max(axis=1) > 0
        assert depends.tolist() == [i < place for i in range(4)]


@pytest.mark.smoke
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_cached_decoding_equals_the_full_forward_pass(scan_layers, norm_position):
    config = change(scan_layers=scan_layers, norm_position=norm_position)
    model, variables = tj.build(config), parameters(config)
    target = jnp.array([[12, 13, 14, 2], [14, 15, 16, 2], [17, 18, 19, 2]])  # no padding to differ in
    full = forward(config, target=target)
    context = jax.jit(functools.partial(model.apply, method="encode_context"))(variables, SOURCE)
    cache = model.init_cache(3, 6)  # longer than needed: the places ahead must not be seen
    cache = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7) if leaf.ndim else leaf, cache)
    tokens = jnp.full(3, config.decoder_start_id)
    step = jax.jit(functools.partial(model.apply, method="decode_step"))
    for place in range(4):
        logits, cache = step(variables, tokens, context, cache)
        close(logits, full[:, place])
        tokens = target[:, place]


@pytest.mark.parametrize("positions", [pytest.param("learned", marks=pytest.mark.everything), "relative"])
@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.everything), True])
def test_prompts_of_several_lengths_are_read_at_once(scan_layers, positions):
    config = change(scan_layers=scan_layers, positions=positions)
    model, variables = tj.build(config), parameters(config)
    target = jnp.array([[12, 13, 14, 15, 2], [14, 15, 16, 17, 2], [17, 18, 19, 11, 2]])
    full = forward(config, target=target)
    padding = np.array([3, 0, 2])
    read = np.full((3, 3), 21)  # whatever stands before a prompt is ignored
    for row, skipped in enumerate(padding):
        read[row, skipped:] = [config.decoder_start_id, *target[row]][: 3 - skipped]
    encode, read_prompt, step = (
        jax.jit(functools.partial(model.apply, method=method))
        for method in ("encode_context", "read_prompt", "decode_step")
    )
    context = encode(variables, SOURCE).replace(padding=jnp.asarray(padding))
    cache = read_prompt(variables, jnp.asarray(read), context, model.init_cache(3, 9))
    starts = np.concatenate([np.full((3, 1), config.decoder_start_id), target], axis=1)
    for place in range(2):
        places = 3 - padding + place
        tokens = starts[range(3), places]
        logits, cache = step(variables, jnp.asarray(tokens), context, cache)
        close(logits, full[np.arange(3), places])


def test_padding_changes_nothing():
    wider = forward(CONFIG, jnp.pad(SOURCE, ((0, 0), (0, 3))), jnp.pad(TARGET, ((0, 0), (0, 2))))
    real = np.asarray(TARGET) != 0
    close(np.asarray(wider)[:, :4][real], np.asarray(forward(CONFIG))[real])


def test_packed_examples_do_not_see_one_another():
    source, source_segments = [5, 9, 2, 8, 6, 7, 2, 0], [1, 1, 1, 2, 2, 2, 2, 0]
    target, target_segments = [12, 2, 14, 15, 2, 0], [1, 1, 2, 2, 2, 0]
    packed = forward(
        CONFIG,
        jnp.array([source]),
        jnp.array([target]),
        inputs_segments=jnp.array([source_segments]),
        inputs_positions=jnp.array([[0, 1, 2, 0, 1, 2, 3, 0]]),
        targets_segments=jnp.array([target_segments]),
        targets_positions=jnp.array([[0, 1, 0, 1, 2, 0]]),
    )[0]
    # Each in a row of its own, of the shape that other tests have compiled.
    sources = jnp.array([[5, 9, 2, 0, 0], [8, 6, 7, 2, 0], [2, 0, 0, 0, 0]])
    alone = forward(CONFIG, sources, jnp.array([[12, 2, 0, 0], [14, 15, 2, 0], [2, 0, 0, 0]]))
    close(packed[:2], alone[0, :2])
    close(packed[2:5], alone[1, :3])


def _loss(config, variables):
    logits = forward(config, variables=variables, train=True, rngs={"dropout": jax.random.key(5)})
    return jnp.sum(jnp.sin(logits))


def _value_and_gradient(config, variables):
    return jax.jit(jax.value_and_grad(functools.partial(_loss, config)))(variables)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_scanned_layers_compute_what_unrolled_ones_do():
    loop, scan = change(dropout=0.0), change(dropout=0.0, scan_layers=True)
    unrolled = parameters(loop)

    def stacked(tree):
        layers = [tree.pop(f"layer_{i}") for i in range(2)]
        return tree | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    def restack(variables):
        params = dict(variables["params"])
        return {"params": params | {side: stacked(dict(params[side])) for side in ("encoder", "decoder")}}

    value, gradient = _value_and_gradient(loop, unrolled)
    scanned_value, scanned_gradient = _value_and_gradient(scan, restack(unrolled))
    close(value, scanned_value)
    jax.tree.map(close, restack(gradient), scanned_gradient)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("scan_layers", [False, True])
def test_rematerialisation_changes_memory_not_numbers(scan_layers):
    plain = change(dropout=0.3, scan_layers=scan_layers)
    remat, products = (
        dataclasses.replace(plain, remat=True, remat_keeps=kept) for kept in ("inputs", "products")
    )
    expected = _value_and_gradient(plain, parameters(plain))
    for config in (remat, products):
        jax.tree.map(close, expected, _value_and_gradient(config, parameters(plain)))

    def kept_for_the_backward_pass(config):
        pullback = jax.eval_shape(
            lambda variables: jax.vjp(lambda v: _loss(config, v), variables)[1], parameters(plain)
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    sizes = [kept_for_the_backward_pass(config) for config in (remat, products, plain)]
    assert sizes == sorted(set(sizes)), sizes


@pytest.mark.smoke
def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    config, variables = change(dtype="bfloat16"), parameters(CONFIG)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(abstract_params(config))} == {"float32"}
    logits = forward(config, variables=variables)
    assert logits.dtype == jnp.float32 and not np.array_equal(logits, forward(CONFIG, variables=variables))
    exact = np.asarray(forward(CONFIG, variables=variables))
    # Eight bits of mantissa: each of some dozen roundings in a row errs by up to 2**-9 of its size.
    assert np.abs(np.asarray(logits, np.float32) - exact).max() < 24 * 2**-9 * np.abs(exact).max()


@pytest.mark.parametrize("share_embeddings", ["all", "none"])
def test_logits_are_summed_in_float32_whatever_their_factors_are(share_embeddings):
    config = change(share_embeddings=share_embeddings)
    logits = np.asarray(forward(change(config, dtype="bfloat16"), variables=parameters(config)))
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize("share_embeddings", ["target", "none"])
def test_unshared_embeddings_are_used_where_they_should_be(share_embeddings):
    config = change(share_embeddings=share_embeddings)
    params = parameters(config)["params"]
    table, target = params["embedding"]["embedding"], params["target_embedding"]["embedding"]
    shared = {name: value for name, value in params.items() if name in ("encoder", "decoder")}
    shared["embedding"] = {"embedding": jnp.concatenate([table, target])}
    # One table with the source's rows first and the target's after them is the same model.
    both = tj.build(change(vocab_size=46, decoder_start_id=23 + CONFIG.decoder_start_id))
    segments = {"inputs_segments": SOURCE > 0, "targets_segments": TARGET > 0}
    segments = {name: value.astype(jnp.int32) for name, value in segments.items()}
    logits = jax.jit(both.apply)({"params": shared}, inputs=SOURCE, targets=TARGET + 23, **segments)
    expected = logits[..., 23:]
    if share_embeddings == "none":
        hidden = np.linalg.lstsq(np.asarray(target), np.asarray(expected).reshape(-1, 23).T, rcond=None)[0].T
        expected = (hidden @ params["logits"]["projection"]["kernel"]).reshape(expected.shape)
        np.testing.assert_allclose(forward(config), expected, atol=1e-3)  # after solving for the hidden state
    else:
        close(forward(config), expected)


def test_scaling_embeddings_multiplies_them_by_the_root_of_the_width():
    params = parameters(CONFIG)["params"]
    table = params["embedding"]["embedding"]
    scaled = {"params": params | {"embedding": {"embedding": table * 4}}}  # d_model is 16
    ours = forward(change(embedding_scale="none"), variables=scaled)
    close(ours, np.asarray(forward(CONFIG)) * 4, rtol=1e-4)  # the logits share the table


def test_biases_and_gelu_are_there_when_asked_for():
    config = change(biases="all", activation="gelu")
    attention = parameters(config)["params"]["decoder"]["layer_0"]["context_attention"]
    assert {name: attention[name]["bias"].shape for name in attention} == {
        "query": (2, 4), "key": (2, 4), "value": (2, 6), "output": (16,),
    }  # fmt: skip
    layer = parameters(config)["params"]["encoder"]["layer_0"]["feedforward"]
    numbers = jax.tree.map(np.asarray, layer)
    x = np.random.default_rng(0).normal(size=(1, 3, 16)).astype(np.float32)
    hidden = x @ numbers["hidden"]["kernel"] + numbers["hidden"]["bias"]
    gelu = hidden * stats.norm.cdf(hidden)
    expected = gelu @ numbers["output"]["kernel"] + numbers["output"]["bias"]
    module = FeedForward(24, "gelu", True, 0.0, jnp.dtype("float32"))
    ours = jax.jit(functools.partial(module.apply, train=False))({"params": layer}, jnp.asarray(x))
    close(ours, expected)


@pytest.fixture
def dropped(monkeypatch):
    """How often something is dropped of each rate and shape, of one example."""
    dropped = collections.Counter()

    def record(x, seed, rate):
        dropped[rate, x.shape[1:]] += 1
        return x

    monkeypatch.setattr(dropout, "_drop", record)
    return dropped


def count_dropped(config):
    variables, rngs = {"params": unbox(abstract_params(config))}, {"dropout": jax.random.key(0)}
    jax.eval_shape(lambda variables: forward(config, variables=variables, train=True, rngs=rngs), variables)


def test_dropout_is_where_the_paper_and_the_config_have_it(dropped):
    config = change(dropout=0.5, attention_dropout=0.4, feedforward_dropout=0.3)
    count_dropped(config)
    assert dropped == {
        (0.5, (5, 16)): 1 + 2 * 2,  # source: embeddings, and both sub-layers of each layer
        (0.5, (4, 16)): 1 + 2 * 3,  # target, which has three sub-layers
        (0.4, (2, 5, 5)): 2,  # attention weights
        (0.4, (2, 4, 4)): 2,
        (0.4, (2, 4, 5)): 2,
        (0.3, (5, 24)): 2,  # hidden units
        (0.3, (4, 24)): 2,
    }


def test_t5_drops_what_its_stacks_give_as_well(dropped):
    rates = dict(dropout=0.5, attention_dropout=0.4, feedforward_dropout=0.3)
    sizes = dict(vocab_size=23, d_model=16, num_heads=2, key_size=4, value_size=6, d_feedforward=24)
    config = tj.families.t5.config("small", **sizes, **rates, num_encoder_layers=2, num_decoder_layers=2)
    count_dropped(config)
    # Raffel et al. 2020, section 2.1: also "at the input and output of the entire stack".
    assert dropped[0.5, (5, 16)] == 1 + 2 * 2 + 1
    assert dropped[0.5, (4, 16)] == 1 + 2 * 3 + 1
    assert (dropped[0.3, (5, 24)], dropped[0.3, (4, 24)]) == (2, 2)


def test_intermediates_are_sown_only_for_who_asks():
    model, variables = tj.build(CONFIG), parameters(CONFIG)
    apply = jax.jit(functools.partial(model.apply, mutable="intermediates"))
    _, state = apply(variables, inputs=SOURCE, targets=TARGET)
    flat = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    weights = [leaf for path, leaf in flat if "attention_weights" in jax.tree_util.keystr(path)]
    blocks = [leaf for path, leaf in flat if "block_output" in jax.tree_util.keystr(path)]
    assert len(weights) == 2 + 2 * 2 and len(blocks) == 2 + 2
    for leaf in weights:
        np.testing.assert_allclose(leaf.sum(-1), 1, rtol=1e-5)
    assert not isinstance(forward(CONFIG), tuple)


def test_a_sequence_longer_than_the_model_is_refused():
    long = jnp.full((1, 13), 5)
    with pytest.raises(ValueError, match="13 tokens is longer than the model's 12"):
        forward(CONFIG, source=long, target=TARGET[:1])
    with pytest.raises(ValueError, match="13 tokens is longer than the model's 12"):
        forward(CONFIG, source=SOURCE[:1], target=long)


def test_a_token_outside_the_vocabulary_gives_nan_not_another_token():
    for token in (23, -1, -100):
        assert np.isnan(forward(CONFIG, source=SOURCE.at[0, 0].set(token))[0]).any()


@pytest.mark.smoke
def test_build_and_init_as_any_flax_user_expects():
    config = change(num_encoder_layers=1, num_decoder_layers=1)
    model = tj.build(config)
    variables = model.init(jax.random.key(0), **tj.example_inputs(config))
    assert list(variables) == ["params"]
    logits = model.apply(variables, inputs=SOURCE, targets=TARGET)
    assert logits.shape == (3, 4, 23) and logits.dtype == jnp.float32
    with pytest.raises(Exception, match="dropout"):
        model.apply(variables, inputs=SOURCE, targets=TARGET, train=True)
