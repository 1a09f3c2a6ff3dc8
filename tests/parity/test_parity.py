"""Models read from Hugging Face folders do what PyTorch did with them: logits, gradients, decoding."""

import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.test_fixtures import DECODING_MODELS, FIXTURES, MODELS, expected
from transformer_jax.decoding import beam_search, greedy_search
from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE, WU_RULE, BeamRule
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.settings import DecodingSettings, TextRules
from transformer_jax.models import abstract_params
from transformer_jax.models.cache import PromptContext, repeated
from transformer_jax.pretrained.generation_json import GENERATION_FILE
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.pretrained.tensor_files import TensorFiles
from transformer_jax.pretrained.weights import read_weights
from transformer_jax.sharding.partitioning import unbox

pytestmark = pytest.mark.parity

LOGITS = 1e-5  # asked for
GRADIENTS = 1e-4  # of the largest element of each gradient, asked for


def smoke_of(smoked, names):
    """The names, of which one is of the smoke list."""
    return [pytest.param(name, marks=[pytest.mark.smoke] * (name == smoked)) for name in names]


# The models whose generator is compared for every change, where others repeat it: one with an encoder and one
# without. ``test_greedy_decoding_with_a_cache`` and ``test_four_beams`` have all models.
GENERATED = ("gpt2", "bart")


def generated_of(names):
    """The names, of which all but ``GENERATED`` are left to ``make everything``."""
    return [pytest.param(name, marks=[pytest.mark.everything] * (name not in GENERATED)) for name in names]


@functools.cache
def loaded(name, **changes):
    return from_pretrained(FIXTURES / name, **changes)


def arguments_of(name, arrays):
    """Of our model, from those of theirs."""
    if name.startswith("vit"):
        return {"images": arrays["pixel_values"].transpose(0, 2, 3, 1)}
    inputs = {"inputs": arrays["input_ids"], "inputs_segments": arrays["attention_mask"]}
    if "token_type_ids" in arrays:
        inputs["inputs_types"] = arrays["token_type_ids"]
    if "decoder_input_ids" in arrays:
        # Theirs begins with the start token, ours is shifted by the model; the last one is not looked at.
        shifted = arrays["decoder_input_ids"]
        assert (shifted[:, 0] == loaded(name).config.decoder_start_id).all()
        inputs["targets"] = np.concatenate([shifted[:, 1:], shifted[:, :1]], axis=1)
        inputs["targets_segments"] = arrays["decoder_attention_mask"]
    return inputs


def outputs_of(name, result):
    """Of theirs, by name, from ours."""
    if name == "bert_qa":
        return dict(zip(MODELS[name][2], (result[..., 0], result[..., 1]), strict=True))
    return dict(zip(MODELS[name][2], result if isinstance(result, tuple) else (result,), strict=True))


def forward_and_gradient(name):
    """Outputs by name, and the gradient of their weighted sum, of the model as it was read."""
    arrays, ours = expected(name), loaded(name)
    arguments = {key: jnp.asarray(value) for key, value in arguments_of(name, arrays).items()}

    def weighted_sum(params):
        found = outputs_of(name, ours.model.apply({"params": params}, **arguments))
        return sum(jnp.sum(found[output] * arrays[f"weights/{output}"]) for output in found), found

    gradient, found = jax.jit(jax.grad(weighted_sum, has_aux=True))(ours.params)
    return found, gradient


def is_real(arrays, output):
    mask = arrays.get("decoder_attention_mask", arrays.get("attention_mask"))
    if mask is None or output.shape[:2] != mask.shape:
        return np.ones(output.shape[:1], bool)
    return mask.astype(bool)


def check_logits(name, outputs):
    arrays = expected(name)
    for output, found in outputs.items():
        real = is_real(arrays, found)
        np.testing.assert_allclose(
            np.asarray(found)[real], arrays[output][real], rtol=LOGITS, atol=LOGITS, err_msg=output
        )


@pytest.mark.parametrize("name", ["bert_pretraining", "gpt2", "t5", "bart"])
def test_logits_of_scanned_layers(name):
    ours = loaded(name, scan_layers=True)
    arguments = {key: jnp.asarray(value) for key, value in arguments_of(name, expected(name)).items()}
    found = jax.jit(ours.model.apply)({"params": ours.params}, **arguments)
    check_logits(name, outputs_of(name, found))


@pytest.mark.parametrize("name", smoke_of("bart", MODELS))
def test_logits_and_gradients(name, tmp_path):
    ours = loaded(name)
    outputs, found = forward_and_gradient(name)
    check_logits(name, outputs)
    # Their gradients, brought into our layout as their weights are.
    arrays = expected(name)
    theirs = {key.removeprefix("grad/"): value for key, value in arrays.items() if key.startswith("grad/")}
    save_file(theirs, tmp_path / "model.safetensors")
    template = unbox(abstract_params(ours.config))
    wanted = read_weights(TensorFiles(tmp_path), ours.family.checkpoint, ours.config, template)
    largest = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        largest[jax.tree_util.keystr(path, simple=True, separator="/")] = np.abs(leaf).max()
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, mine), other in pairs:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        # A bias of all keys shifts all scores of a query alike, so its gradient is 0 but for rounding.
        scale = largest[where.replace("key/bias", "key/kernel")]
        assert scale > 1e-3, where
        np.testing.assert_allclose(mine, other, rtol=0, atol=GRADIENTS * scale, err_msg=where)


def decoder_of(name, arrays, beams=1):
    """``step`` and first cache of the model, with the token to begin with."""
    ours = loaded(name)
    model, variables = ours.model, {"params": ours.params}
    inputs, mask = jnp.asarray(arrays["input_ids"]), jnp.asarray(arrays["attention_mask"])
    if name == "gpt2":
        inputs, mask = jnp.asarray(arrays["left/input_ids"]), jnp.asarray(arrays["left/attention_mask"])
        context = PromptContext(inputs.shape[1] - mask.sum(axis=1))
        cache = model.init_cache(len(inputs), inputs.shape[1] + 12)
        read = jax.jit(functools.partial(model.apply, method="read_prompt"))
        cache = read(variables, inputs[:, :-1], context, cache)
        start = inputs[:, -1]
    else:
        context = jax.jit(functools.partial(model.apply, method="encode_context"))(variables, inputs, mask)
        cache = model.init_cache(len(inputs), 12)
        start = jnp.full(len(inputs), ours.config.decoder_start_id)
    context = repeated(context, beams)

    def step(tokens, cache):
        return model.apply(variables, tokens, context, cache, method="decode_step")

    return step, cache, start, ours.config


@pytest.mark.parametrize("name", smoke_of("bart", DECODING_MODELS))
def test_greedy_decoding_with_a_cache(name):
    arrays = expected(name)
    step, cache, start, config = decoder_of(name, arrays)
    ends = dict(max_length=12, eos_id=config.eos_id, pad_id=config.pad_id)
    decoded = jax.jit(lambda: greedy_search(step, cache, start, **ends))()
    for row, length in enumerate(arrays["greedy/lengths"]):
        assert decoded.lengths[row] == length
        assert decoded.tokens[row, :length].tolist() == arrays["greedy/tokens"][row, :length].tolist()
    # A sum over up to 12 tokens of a logit less a normalizer, both within LOGITS: half of what that allows.
    np.testing.assert_allclose(decoded.log_probs, arrays["greedy/log_probs"], rtol=0, atol=12 * LOGITS)
    tokens, one_step = start, jax.jit(step)
    for place in range(12):
        logits, cache = one_step(tokens, cache)
        real = arrays["greedy/lengths"] > place
        np.testing.assert_allclose(
            np.asarray(logits)[real], arrays["greedy/logits"][real, place], rtol=LOGITS, atol=LOGITS
        )
        tokens = jnp.asarray(arrays["greedy/tokens"][:, place])


ALPHA = 1.5  # of the penalized fixtures
RULES = {
    "beam": (0.0, BeamRule("power", early_stopping=True, unfinished_compete=True)),
    "beam_defaults": (1.0, TRANSFORMERS_RULE),
    "beam_reference": (0.0, WU_RULE),
    "beam_reference_penalized": (ALPHA, WU_RULE),
}


def beams():
    """Each model by two rules or more, and each rule with two models or more: 11 of 20 for every change."""
    chosen = {
        "gpt2": ("beam", "beam_reference_penalized"),
        "t5": ("beam_defaults", "beam_reference"),
        "t5_v1_1": ("beam", "beam_reference"),
        "bart": ("beam_defaults", "beam_reference_penalized"),
        "marian": ("beam", "beam_defaults", "beam_reference"),
    }
    for name, result in itertools.product(DECODING_MODELS, RULES):
        marks = [] if result in chosen[name] else [pytest.mark.everything]
        marks += [pytest.mark.smoke] * ((name, result) == ("bart", "beam_defaults"))
        yield pytest.param(name, result, marks=marks)


@pytest.mark.parametrize(("name", "result"), list(beams()))
def test_four_beams(name, result):
    arrays, (penalty, rule) = expected(name), RULES[result]
    assert json.loads(str(arrays["decoding"]))["penalized_alpha"] == ALPHA
    step, cache, start, config = decoder_of(name, arrays, beams=4)
    ends = dict(max_length=12, eos_id=config.eos_id, pad_id=config.pad_id)
    search = dict(beam_size=4, length_penalty=penalty, rule=rule, **ends)
    found = jax.jit(lambda: beam_search(step, cache, start, **search))()
    assert found.lengths.tolist() == arrays[f"{result}/lengths"].tolist()
    for row, beam in np.ndindex(*found.lengths.shape):
        length = found.lengths[row, beam]
        theirs = arrays[f"{result}/tokens"][row, beam, :length].tolist()
        assert found.tokens[row, beam, :length].tolist() == theirs, (row, beam)
    for key in ("scores", "log_probs"):
        np.testing.assert_allclose(
            getattr(found, key), arrays[f"{result}/{key}"], rtol=0, atol=12 * LOGITS, err_msg=key
        )


def sequences_of(name, arrays):
    side = "left/" if name == "gpt2" else ""
    rows = zip(arrays[f"{side}input_ids"], arrays[f"{side}attention_mask"], strict=True)
    return [tokens[mask == 1] for tokens, mask in rows]


def best_of(arrays, result):
    """The best text of each row, as a list of tokens."""
    tokens, lengths = arrays[f"{result}/tokens"], arrays[f"{result}/lengths"]
    if lengths.ndim == 2:
        tokens, lengths = tokens[:, 0], lengths[:, 0]
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def generators():
    """Beams go through the generator as greedy search does: with one model by each rule for every change."""
    for name, result in itertools.product(DECODING_MODELS, ("greedy", "beam_reference", "beam_defaults")):
        is_rare = (name, result) not in (("gpt2", "beam_reference"), ("bart", "beam_defaults"))
        if result == "greedy":
            marks = [pytest.mark.everything] * (name not in GENERATED)
        else:
            marks = [pytest.mark.slow] + [pytest.mark.everything] * is_rare
        yield pytest.param(name, result, marks=marks)


@pytest.mark.parametrize(("name", "result"), list(generators()))
def test_the_generator_gives_the_same_from_sequences_of_several_lengths(name, result):
    arrays, ours = expected(name), loaded(name)
    sequences = sequences_of(name, arrays)
    penalty, rule = RULES.get(result, RULES["beam_defaults"])
    settings = DecodingSettings(beam_size=1 if result == "greedy" else 4, length_penalty=penalty)
    generator = Generator(
        ours.config,
        settings,
        ours.config.vocab_size,
        output_length=lambda _: 12,
        batch_size=3,
        rules=TextRules(rule),
    )
    found = [tokens.tolist() for tokens in generator.generate(ours.params, sequences)]
    assert found == best_of(arrays, result)
    if result == "greedy":
        assert [list(generator.stream(ours.params, sequence)) for sequence in sequences] == found


def generated(ours, sequences, **options):
    """What ``ours.generate`` makes, in tokens, each text in one batch with others and by itself."""
    settings, rules, max_new_tokens = ours.generation.chosen(**options)
    generator = Generator(
        ours.config,
        settings,
        ours.config.vocab_size,
        output_length=lambda _: max_new_tokens,
        batch_size=3,
        rules=rules,
    )
    found = [tokens.tolist() for tokens in generator.generate(ours.params, sequences)]
    assert [generator.generate(ours.params, [one])[0].tolist() for one in sequences[:1]] == found[:1]
    if settings.beam_size == 1:
        assert [list(generator.stream(ours.params, sequence)) for sequence in sequences] == found
    return found


@pytest.mark.parametrize(
    ("num_beams", "result"),
    [pytest.param(1, "folder_greedy", marks=[pytest.mark.slow, pytest.mark.everything]), (4, "folder_beam")],
)
@pytest.mark.parametrize("name", generated_of(DECODING_MODELS))
def test_a_folder_generates_as_there_where_nothing_else_is_said(name, num_beams, result):
    arrays = expected(name)
    found = generated(loaded(name), sequences_of(name, arrays), beam_size=num_beams, max_new_tokens=12)
    assert found == best_of(arrays, result)


@pytest.mark.parametrize("name", generated_of(DECODING_MODELS))
def test_what_generation_config_asks_for_is_done(name, tmp_path):
    arrays = expected(name)
    ruled = json.loads(str(arrays["decoding"]))["ruled"]
    shutil.copytree(FIXTURES / name, tmp_path / name)
    (tmp_path / name / GENERATION_FILE).write_text(json.dumps(ruled | {"num_beams": 4, "max_length": 13}))
    found = generated(from_pretrained(tmp_path / name), sequences_of(name, arrays), max_new_tokens=12)
    assert found == best_of(arrays, "beam_ruled")


@pytest.mark.parametrize("name", smoke_of("bart", MODELS))
def test_what_is_written_is_what_was_read(name, tmp_path):
    ours = loaded(name)
    save_pretrained(tmp_path, ours)
    stored, written = (load_file(folder / "model.safetensors") for folder in (FIXTURES / name, tmp_path))
    assert set(written) == set(stored)
    for tensor, array in stored.items():
        skipped = 2 if name == "bart" and "embed_positions" in tensor else 0  # rows that nothing reads
        np.testing.assert_array_equal(written[tensor][skipped:], array[skipped:], err_msg=tensor)
    again = from_pretrained(tmp_path)
    assert again.config == ours.config and again.labels == ours.labels
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, ours.params))
