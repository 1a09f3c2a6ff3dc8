"""Batched, cached, compiled translation against the plainest possible decoding."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compilations import compilations
from tests.decoding_model import reference_beam
from tests.drawn import drawn_params
from tests.models import reference
from tests.tiny_training import tiny_experiment, write_corpus, write_run
from transformer_jax.checkpoints.files import CheckpointError
from transformer_jax.config import ConfigError
from transformer_jax.data import Tokenizer, TokenizerConfig, train_tokenizer
from transformer_jax.evaluation.translator import translator as translator_of
from transformer_jax.runs.experiment import EvaluateConfig
from transformer_jax.runs.loading import load_run
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh
from transformer_jax.types import SPECIAL_TOKENS

# What is compared is compiled in the same way.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

TEXTS = ["red blue", "", "green " * 6, "old new", "a", "small " * 4, "   "]
SHORT_TEXTS = ["red blue", "", "old new", "a"]  # of one padded length, so compiled once


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    experiment = tiny_experiment(tmp_path_factory.mktemp("corpus"))
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])
    # Larger than at the start, so that predictions are not all alike.
    params = jax.tree.map(lambda leaf: 3 * leaf, drawn_params(experiment.model, 3))
    return experiment.model, tokenizer, params


def plain_greedy(config, tokenizer, params, text, extra_length):
    """The whole forward pass again, in NumPy, for every token of one sentence."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    source = [*tokenizer.encode(text).tolist(), config.eos_id]
    limit = min(len(source) + extra_length, config.max_length)
    output = []
    while len(output) < limit and config.eos_id not in output:
        target = [*output, config.pad_id]  # the last place is what is predicted
        logits = reference.logits(params, config, source, target)[-1]
        logits[config.pad_id] = -np.inf  # never comes
        output.append(int(logits.argmax()))
    return tokenizer.decode(output)


# That scanned layers decode as others do is shown with the models, for every change.
@pytest.mark.parametrize("scan_layers", [False, pytest.param(True, marks=pytest.mark.everything)])
def test_greedy_translation_equals_decoding_without_cache_batch_or_padding(parts, scan_layers):
    config, tokenizer, params = parts
    expected = [plain_greedy(config, tokenizer, params, text, 8) if text.strip() else "" for text in TEXTS]
    if scan_layers:
        config = dataclasses.replace(config, scan_layers=True)
        for side in ("encoder", "decoder"):
            layer = jax.tree.map(lambda leaf: leaf[None], params[side]["layer_0"])
            params = params | {side: {"layers": layer}}
    translator = translator_of(config, tokenizer, EvaluateConfig(beam_size=1, extra_length=8, batch_size=4))
    assert translator.generate(params, TEXTS) == expected
    assert len(set(expected)) > 3  # or nothing was tested


def test_another_tokenizers_special_tokens_are_used(parts, tmp_path):
    config, tokenizer, params = parts
    tokenizer.save(tmp_path / "ours.json")
    content = json.loads((tmp_path / "ours.json").read_text())
    names = ["<s>", "<pad>", "</s>", "<unk>"]  # in BART's order
    vocabulary = content["model"]["vocab"]
    for id_, (old, new) in enumerate(zip(SPECIAL_TOKENS, names, strict=True)):
        del vocabulary[old]
        vocabulary[new] = id_
        content["added_tokens"][id_]["content"] = new
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = Tokenizer.load(tmp_path / "other.json")
    config = dataclasses.replace(config, pad_id=1, decoder_start_id=2)
    expected = [plain_greedy(config, other, params, text, 8) for text in SHORT_TEXTS if text]
    translator = translator_of(config, other, EvaluateConfig(beam_size=1, extra_length=8, batch_size=4))
    assert translator.generate(params, [text for text in SHORT_TEXTS if text]) == expected
    assert len(set(expected)) > 1


def plain_beam(config, tokenizer, params, text, settings):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    source = [*tokenizer.encode(text).tolist(), config.eos_id]

    def next_log_probs(output):
        logits = reference.logits(params, config, source, [*output, config.pad_id])[-1]
        log_probs = logits - np.logaddexp.reduce(logits)
        log_probs[config.pad_id] = -np.inf  # never comes
        return log_probs

    limit = min(len(source) + settings.extra_length, config.max_length)
    best, *_ = reference_beam(next_log_probs, limit, settings.length_penalty, settings.beam_size)
    return tokenizer.decode(best[0])


def test_beam_search_has_the_size_and_the_penalty_of_its_settings(parts):
    config, tokenizer, params = parts
    params = jax.tree.map(lambda leaf: 2 / 3 * leaf, params)
    # An eos that is like several tokens, so that texts end, and at different lengths.
    table = params["embedding"]["embedding"]
    like = np.random.default_rng(8).integers(len(SPECIAL_TOKENS), tokenizer.vocab_size, 8)
    table = table.at[config.eos_id].set(1.8 * table[like].sum(axis=0) / 8**0.5)
    params = params | {"embedding": {"embedding": table}}
    found = {}
    for beam_size, length_penalty in ((4, -5.0), (4, 5.0), (2, 5.0)):
        settings = EvaluateConfig(beam_size=beam_size, length_penalty=length_penalty, extra_length=6)
        expected = [
            plain_beam(config, tokenizer, params, text, settings) if text else "" for text in SHORT_TEXTS
        ]
        assert translator_of(config, tokenizer, settings).generate(params, SHORT_TEXTS) == expected
        found[beam_size, length_penalty] = expected
    assert len(set(map(tuple, found.values()))) == 3  # or a setting that is ignored would go unnoticed


@pytest.mark.slow
def test_a_translation_does_not_depend_on_its_batch_or_mesh(parts):
    config, tokenizer, params = parts
    settings = EvaluateConfig(beam_size=3, extra_length=8, batch_size=8)
    together = translator_of(config, tokenizer, settings).generate(params, TEXTS)
    alone = translator_of(config, tokenizer, settings)
    assert together == [alone.generate(params, [text])[0] for text in TEXTS]
    meshed = translator_of(config, tokenizer, settings, make_mesh(MeshConfig()))
    assert together == meshed.generate(params, TEXTS)


@pytest.mark.slow
def test_sampling_is_reproducible_and_a_cold_one_is_greedy(parts):
    config, tokenizer, params = parts
    common = dict(extra_length=8, batch_size=4)
    greedy = translator_of(config, tokenizer, EvaluateConfig(beam_size=1, **common)).generate(params, TEXTS)
    cold = translator_of(config, tokenizer, EvaluateConfig(temperature=1e-4, **common))
    assert cold.generate(params, TEXTS) == greedy
    warm = translator_of(config, tokenizer, EvaluateConfig(temperature=1.0, top_k=50, top_p=0.95, **common))
    drawn = warm.generate(params, TEXTS)
    assert drawn != greedy
    for one_choice in (dict(top_k=1), dict(top_p=1e-6)):
        narrow = EvaluateConfig(temperature=1.0, **one_choice, **common)
        assert translator_of(config, tokenizer, narrow).generate(params, TEXTS[3:5]) == greedy[3:5]
    # A text's draws depend on its number, not on the texts beside it.
    assert warm.generate(params, TEXTS[2:4], first_number=2) == drawn[2:4]
    other = EvaluateConfig(temperature=1.0, top_k=50, top_p=0.95, seed=1, **common)
    assert translator_of(config, tokenizer, other).generate(params, TEXTS) != drawn


def test_compiled_once_for_each_shape(parts):
    config, tokenizer, params = parts
    translator = translator_of(config, tokenizer, EvaluateConfig(beam_size=2, extra_length=4, batch_size=4))
    assert compilations(lambda: translator.generate(params, ["red"] * 4)) > 0
    assert compilations(lambda: translator.generate(params, ["blue", "old", "new", "small"])) == 0


def test_tokens_without_a_text_never_come(parts):
    config, tokenizer, params = parts
    wide = dataclasses.replace(config, vocab_size=400)
    table = params["embedding"]["embedding"]
    # Rows beyond the tokenizer's that every state of the decoder likes best.
    rows = jnp.concatenate([100 * jnp.ones((70, 16)), -100 * jnp.ones((70, 16))])
    wide_params = params | {"embedding": {"embedding": jnp.concatenate([table, rows])}}
    for settings in (dict(beam_size=2), dict(temperature=1.0)):
        translator = translator_of(wide, tokenizer, EvaluateConfig(extra_length=8, **settings))
        assert len(translator.generate(wide_params, SHORT_TEXTS)) == len(SHORT_TEXTS)


def test_a_text_longer_than_the_model_is_named(parts):
    config, tokenizer, params = parts
    translator = translator_of(config, tokenizer, EvaluateConfig())
    with pytest.raises(ValueError, match=r"text 2 has 61 tokens, the model takes 48.*'xxxx"):
        translator.generate(params, ["red", "x" * 60])


def test_a_decoder_alone_does_not_translate(parts):
    config, tokenizer, _ = parts
    alone = dataclasses.replace(config, num_encoder_layers=0)
    with pytest.raises(ConfigError, match=r"this model has no encoder; use transformer_jax\.generate"):
        translator_of(alone, tokenizer, EvaluateConfig())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "corpus")
    # Steps 3 and 6 are scored, 2, 4 and 6 on schedule.
    write_run(tiny_experiment(folder / "corpus"), folder / "workdir", (2, 3, 4, 6), {3: 1.5, 6: 2.5})
    return folder / "workdir"


def test_load_run_reads_what_is_asked_for(run):
    assert load_run(str(run)).steps == (6, 4)  # the config averages two
    assert load_run(str(run), average_last=3).steps == (6, 4, 2)
    assert load_run(str(run), "4").steps == (4,)
    assert load_run(str(run), "best").steps == (3,)
    one, two = (load_run(str(run), step).params for step in ("6", "4"))
    mean = load_run(str(run), average_last=2).params
    jax.tree.map(lambda a, b, m: np.testing.assert_allclose((a + b) / 2, m, atol=1e-7), one, two, mean)


def test_a_run_without_a_checkpoint_is_named(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint yet: training writes one every 2 steps"):
        load_run(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("latest", 9), CheckpointError, "cannot average the last 9"),
        (("newest", None), ConfigError, "'newest' must be 'latest', 'best' or a step"),
        (("5", None), CheckpointError, "5"),
        (("6", 2), ConfigError, "--average_last=2 requires --from_checkpoint=latest"),
    ],
)
def test_checkpoints_that_are_not_there(run, arguments, error, message):
    with pytest.raises(error, match=message):
        load_run(str(run), *arguments)
