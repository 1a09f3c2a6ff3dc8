"""Texts in; texts, classes and vectors out: against PyTorch's stored decodings and plain NumPy."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compilations import compilations
from tests.drawn import drawn_params
from tests.parity.test_fixtures import STORED
from tests.tiny_training import tiny_experiment
from tests.word_tokenizers import word_tokenizer, words
from transformer_jax.config import ConfigError
from transformer_jax.data import TokenizerConfig, train_tokenizer
from transformer_jax.decoding.settings import DecodingSettings
from transformer_jax.families import FAMILIES, bert, gpt2
from transformer_jax.inference.defaults import GenerationDefaults
from transformer_jax.inference.generation import TextGenerator, generate_texts, stream_text
from transformer_jax.inference.model import Pretrained
from transformer_jax.inference.texts import class_probabilities
from transformer_jax.inference.vectors import embed_texts
from transformer_jax.objectives import CausalLM, Classification
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.runs import loading
from transformer_jax.runs.loading import TrainedRun, load_model
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

OTHER_RESULTS = ("folder_greedy", "folder_beam", "beam_reference")  # test_parity has their ids
TEXTS = ["w5 w9", "", "w20 w21 w22 w23 w24", "w9", "w40 w5 w40"]
SAMPLED = pytest.param(dict(temperature=1.0), marks=pytest.mark.everything)  # of the same logits as {}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Reads a fixture and gives it a tokenizer."""

    @functools.cache
    def load(name):
        found = from_pretrained(STORED / name)
        if not found.config.front_end.has_tokens:
            return found
        return dataclasses.replace(found, tokenizer=word_tokenizer(name, tmp_path_factory.mktemp(name)))

    return load


def sources_and_outputs(name, result):
    """Texts, and what PyTorch made of them."""
    with np.load(STORED / name / "expected.npz") as arrays:
        lengths = arrays["attention_mask"].sum(axis=1)
        sources = [words(row[:n], name) for row, n in zip(arrays["input_ids"], lengths, strict=True)]
        tokens, ends = arrays[f"{result}/tokens"], arrays[f"{result}/lengths"]
        if ends.ndim == 2:
            tokens, ends = tokens[:, 0], ends[:, 0]
        return sources, [words(row[:n], name) for row, n in zip(tokens, ends, strict=True)]


def texts_of_pytorch():
    """Beams of more than one model are with other results in ``test_parity``, in tokens."""
    chosen = ("gpt2 greedy", "t5 greedy", "gpt2 beam_reference", "bart folder_beam")  # for every change
    for name, result in itertools.product(("gpt2", "t5", "bart"), ("greedy", *OTHER_RESULTS)):
        marks = [pytest.mark.slow] * (result != "greedy")
        marks += [pytest.mark.everything] * (f"{name} {result}" not in chosen)
        yield pytest.param(name, result, marks=marks)


@pytest.mark.parametrize(("name", "result"), list(texts_of_pytorch()))
def test_generated_texts_are_those_of_pytorch(loaded, name, result):
    model = loaded(name)
    if not result.startswith("folder"):  # by the rule of runs
        model = dataclasses.replace(model, generation=GenerationDefaults(length_penalty=0.0))
    sources, outputs = sources_and_outputs(name, result)
    if name == "gpt2":  # the space between prompt and continuation is of the continuation
        outputs = [f" {output}" for output in outputs]
    options = dict(num_beams=4 if "beam" in result else 1, max_new_tokens=12)
    assert model.generate(sources, **options) == outputs and len(set(outputs)) > 2
    assert model.generate(sources[1], **options) == outputs[1]
    if "greedy" in result:
        for source, output in zip(sources, outputs, strict=True):
            pieces = list(model.stream(source, max_new_tokens=12))
            assert "".join(pieces) == output and len(pieces) == len(output.split())


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), SAMPLED], ids=str)
def test_padding_never_comes_however_a_model_rates_it(loaded, options):
    model = loaded("marian")
    bias = model.params["logits"]["bias"].at[model.config.pad_id].set(9.0)
    other = dataclasses.replace(model, params=model.params | {"logits": {"bias": bias}})
    found, wanted = (one.generate(TEXTS, max_new_tokens=6, **options) for one in (other, model))
    if "num_beams" in options:  # the others' probabilities matter, which are smaller now
        found, wanted = ([bool(text) for text in texts] for texts in (found, wanted))
    assert found == wanted and any(found)


def test_sampling_depends_on_seed_and_number_and_streams_alike(loaded):
    model = loaded("gpt2")
    parts = (model.config, model.params, model.tokenizer)
    warm = DecodingSettings(beam_size=1, temperature=1.5, top_k=20, top_p=0.9, seed=3)
    drawn = generate_texts(*parts, ["w5 w6"] * 4, warm, max_new_tokens=8)
    assert len(set(drawn)) > 1
    assert generate_texts(*parts, ["w5 w6"], warm, max_new_tokens=8, first_number=2) == drawn[2:3]
    assert "".join(stream_text(*parts, "w5 w6", warm, max_new_tokens=8, number=2)) == drawn[2]
    options = dict(temperature=1.5, top_k=20, top_p=0.9, max_new_tokens=8)
    once = model.generate("w5 w6", seed=3, **options)
    assert once == drawn[0] == "".join(model.stream("w5 w6", seed=3, **options))
    assert model.generate("w5 w6", seed=4, **options) != once


def test_an_empty_prompt_begins_a_text(loaded):
    model = loaded("gpt2")
    assert TextGenerator(model.config, model.tokenizer).tokens("", 1).tolist() == [66]
    assert model.generate("") == model.generate("<|endoftext|>") != ""
    assert TextGenerator(model.config, model.tokenizer, prompt_start=(66,)).tokens("", 1).tolist() == [66]


def test_what_a_decoder_and_an_encoder_are_given(loaded):
    for name, text, expected in (
        ("gpt2", "w5 <|endoftext|> w6", [5, 66, 6]),
        ("bart", "w5 <mask> w6", [5, 4, 6, 2]),
        ("t5", "w5 <extra_id_0>", [5, 3, 1]),
        ("t5", "", [1]),
    ):
        model = loaded(name)
        assert TextGenerator(model.config, model.tokenizer).tokens(text, 1).tolist() == expected
    model = loaded("gpt2")
    found = TextGenerator(model.config, model.tokenizer, prompt_start=(66,)).tokens("w5", 1)
    assert found.tolist() == [66, 5]


@pytest.mark.parametrize("name", ["bart", pytest.param("t5", marks=pytest.mark.everything)])
def test_outputs_continue_the_decoder_prompt(loaded, name):
    model = loaded(name)
    alone = model.generate("w5 w6 w7", max_new_tokens=6)
    first, *rest = alone.split()
    assert model.generate("w5 w6 w7", decoder_prompt=first, max_new_tokens=5).split() == rest != []
    several = model.generate(["w5 w6 w7", "w9"], decoder_prompt=[first, ""], max_new_tokens=5)
    assert several[0].split() == rest and several[1] == model.generate("w9", max_new_tokens=5)
    assert "".join(model.stream("w5 w6 w7", decoder_prompt=first, max_new_tokens=5)).split() == rest
    # The same as a default of the model.
    prompt = tuple(model.tokenizer.encode(first).tolist())
    rules = dataclasses.replace(model.generation.rules, decoder_prompt=prompt)
    prompted = dataclasses.replace(model, generation=dataclasses.replace(model.generation, rules=rules))
    assert prompted.generate("w5 w6 w7", max_new_tokens=5).split() == rest
    assert "".join(prompted.stream("w5 w6 w7", max_new_tokens=5)).split() == rest


def test_an_output_may_be_some_tokens_longer_than_its_source(loaded):
    model = loaded("bart")
    short, long = model.generate(["w5", "w5 w6 w7 w8"], extra_length=1)  # each source with its eos
    assert len(short.split()) <= 3 and len(long.split()) <= 6
    assert [short, long] == [
        model.generate(text, max_new_tokens=limit) for text, limit in (("w5", 3), ("w5 w6 w7 w8", 6))
    ]


def test_a_second_call_compiles_nothing(loaded):
    model = loaded("bart")
    assert compilations(lambda: model.generate(TEXTS, max_new_tokens=7)) > 0  # 7: of no other test
    assert compilations(lambda: model.generate([*TEXTS[1:], "w8"], max_new_tokens=7)) == 0


def byte_language_model(**changes):
    """A tiny GPT-2 of bytes with larger parameters than at the start, so that predictions differ."""
    sizes = dict(vocab_size=260, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32)
    config = gpt2.config("small", **sizes, num_decoder_layers=1, max_length=40, eos_id=2, **changes)
    params = jax.tree.map(lambda leaf: 9 * leaf, drawn_params(config, 1))
    return Pretrained(FAMILIES["gpt2"], config, params, train_tokenizer(TokenizerConfig(kind="byte"), []))


def test_a_stream_of_bytes_is_the_text():
    model, settings = byte_language_model(), DecodingSettings(beam_size=1, temperature=1.0)
    generator = TextGenerator(model.config, model.tokenizer, settings, max_new_tokens=30)
    for number in range(3):  # three draws of the same programs
        (text,) = generator.generate(model.params, ["Grö"], number)
        assert "".join(generator.stream(model.params, "Grö", number)) == text != ""


# Classes


def by_hand(model, texts):
    """Logits of each text alone, without padding."""
    cls, sep = (model.tokenizer.id_of(role) for role in ("cls", "sep"))
    apply = jax.jit(model.model.apply)
    for text in texts:
        parts = [text] if isinstance(text, str) else text
        ids, types = [cls], [0]
        for number, part in enumerate(parts):
            own = [*(int(word[1:]) for word in part.split()), sep]
            ids, types = ids + own, types + [number] * len(own)
        arguments = {"inputs": jnp.array([ids]), "inputs_types": jnp.array([types])}
        yield np.asarray(apply({"params": model.params}, **arguments))[0].astype(np.float64)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_of_texts_and_pairs(loaded):
    model = loaded("bert_sequence")
    inputs = [*TEXTS, ("w5", "w9 w8"), ("w9 w8", "w5")]
    expected = np.array([softmax(logits) for logits in by_hand(model, inputs)])
    for batch_size in (1, 3, 32):
        found = class_probabilities(
            model.config, model.params, model.tokenizer, inputs, batch_size=batch_size
        )
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert found.dtype == np.float32
    assert np.ptp(expected, axis=0).max() > 0.05  # or order would not matter
    rows = model.classify(inputs)
    assert [row[0][0] for row in rows] == [f"LABEL_{i}" for i in expected.argmax(axis=1)]
    for row, probabilities in zip(rows, expected, strict=True):
        values = [probability for _, probability in row]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, sorted(probabilities, reverse=True), atol=2e-6)
    assert model.classify("w5 w9") == model.classify(["w5 w9"])[0]
    assert model.classify(("w5", "w9 w8")) == model.classify([("w5", "w9 w8")])[0]
    assert model.classify([]) == []


# Vectors


@pytest.mark.parametrize(
    "name",
    [
        "bert_base_model",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert_sequence", "bert_masked_lm")),
    ],
)
def test_vectors_are_means_over_tokens(loaded, name):
    model = loaded(name)
    bare = dataclasses.replace(model, config=dataclasses.replace(model.config, head="none", num_labels=0))
    expected = np.array([vectors.mean(axis=0) for vectors in by_hand(bare, TEXTS)])
    found = model.embed(TEXTS, normalize=False, batch_size=2)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), model.config.d_model)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(TEXTS), unit, atol=2e-6)
    np.testing.assert_array_equal(model.embed(TEXTS[0]), model.embed(TEXTS[:1])[0])
    assert model.embed([]).shape == (0, model.config.d_model)


def test_few_shapes_are_compiled():
    sizes = dict(vocab_size=300, d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32)
    config = bert.config("base", **sizes, num_encoder_layers=1, max_length=100, head="none")
    params = drawn_params(config)
    special = TokenizerConfig(kind="byte", special_tokens=("<cls>", "<sep>"))
    tokenizer = train_tokenizer(special, [])
    texts = ["x" * n for n in range(0, 99)]
    embed = functools.partial(embed_texts, config, params, tokenizer, batch_size=8)
    # 8 rows of each of the lengths 16, 32, 64 and 100, and 4 rows at the end of the last; and operations.
    assert 5 <= compilations(lambda: embed(texts)) <= 15
    assert compilations(lambda: embed(texts[::-1])) == 0
    np.testing.assert_allclose(np.linalg.norm(embed(texts), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        pytest.param("gpt2", lambda m: m.generate(TEXTS, max_new_tokens=6), marks=pytest.mark.everything),
        ("gpt2", lambda m: "".join(m.stream(TEXTS[0], max_new_tokens=6))),
        ("bart", lambda m: m.generate(TEXTS, max_new_tokens=6, num_beams=3)),
        ("bert_base_model", lambda m: m.embed(TEXTS)),
        ("bert_sequence", lambda m: class_probabilities(m.config, m.params, m.tokenizer, TEXTS)),
    ],
    ids=["prompts", "stream", "sources", "vectors", "classes"],
)
def test_parameters_split_over_a_mesh_give_the_same(loaded, name, call):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = from_pretrained(STORED / name, mesh=mesh).params
    split = dataclasses.replace(loaded(name), params=params)
    shards = {leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(split.params)}
    assert True in shards
    found, wanted = call(split), call(loaded(name))
    if isinstance(wanted, np.ndarray):
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    else:
        assert found == wanted


# Mistakes


def test_texts_longer_than_the_model_are_named(loaded):
    long = "w7 " * 30
    calls = {"bart": "generate", "gpt2": "generate", "bert_sequence": "classify", "bert_qa": "embed"}
    for name, call in calls.items():
        model = loaded(name)
        special = {"bart": 1, "gpt2": 0}.get(name, 2)
        limit = model.config.max_length
        message = rf"text 2 has {30 + special} tokens, the model takes {limit}: split it. It begins 'w7 w7"
        with pytest.raises(ValueError, match=message):
            getattr(model, call)(["w5", long])
    with pytest.raises(ValueError, match="text 1 has 30 tokens"):
        loaded("gpt2").stream(long)  # before the first piece is asked for


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("bert_masked_lm", lambda m: m.generate("w5"), "with the head 'masked_tokens': it has no decoder"),
        ("bert_masked_lm", lambda m: m.stream("w5"), "it has no decoder"),
        ("vit", lambda m: m.generate("w5"), "it has no decoder"),
        ("bart", lambda m: m.classify("w5"), "the head 'tokens': telling classes needs the head 'classes'"),
        ("bert_masked_lm", lambda m: m.classify("w5"), "the head 'masked_tokens': telling classes needs"),
        ("bart", lambda m: m.embed("w5"), "an encoder with a decoder: vectors of texts need an encoder"),
        ("gpt2", lambda m: m.embed("w5"), "a decoder alone: vectors of texts need"),
        ("vit", lambda m: m.embed("w5"), "one of images: vectors of texts need"),
        ("bert_sequence", lambda m: m.classify([np.zeros((2, 2, 3), np.uint8)]), "input 1 is an array"),
        ("gpt2", lambda m: m.generate("w5", num_beams=4, temperature=1.0), "a beam of 4 searches, temp"),
        ("gpt2", lambda m: m.generate("w5", num_beams=4, beam_size=3), "are two names of one setting"),
        ("gpt2", lambda m: m.generate("w5", decoder_prompt="w6"), "continues the sequence itself"),
        ("bart", lambda m: m.generate("w5", decoder_prompt=["w6", "w7"]), "2 decoder prompts do not fit 1"),
        ("gpt2", lambda m: m.generate("w5", max_new_tokens=0), "max_new_tokens=0 must be at least 1"),
        ("gpt2", lambda m: m.generate("w5", top_k=5), "for sampling: set temperature above 0"),
    ],
)
def test_what_a_model_cannot_do(loaded, name, call, message):
    with pytest.raises(ValueError, match=message):
        call(loaded(name))


@pytest.mark.parametrize(
    ("name", "call"),
    [("bart", "generate"), ("gpt2", "stream"), ("bert_sequence", "classify"), ("bert_qa", "embed")],
)
def test_texts_need_a_tokenizer(name, call):
    with pytest.raises(ConfigError, match=r"has no tokenizer, .*put its tokenizer\.json into its folder"):
        getattr(from_pretrained(STORED / name), call)("w5")


# Models by name or from a run


def test_a_folder_is_loaded_with_its_tokenizer(loaded, tmp_path):
    save_pretrained(tmp_path, loaded("bart"))
    assert load_model(str(tmp_path)).generate(TEXTS) == loaded("bart").generate(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of --model .* and --workdir"),
        ({"model": "a", "workdir": "b"}, "give one of --model"),
        (
            {"model": "a", "average_last": 2},
            "--from_checkpoint and --average_last can only be used with --workdir",
        ),
        ({"model": "a", "from_checkpoint": "best"}, "can only be used with --workdir"),
        ({"workdir": "missing"}, "missing holds no run"),
    ],
)
def test_one_model_is_chosen(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_model(**arguments)


def test_a_run_brings_labels_and_the_start_of_prompts(corpus, monkeypatch):
    model = byte_language_model()
    source = dataclasses.replace(
        tiny_experiment(corpus).data.source,
        kind="jsonl",
        train=("a",),
        validation=(),
        test=(),
        features=(("inputs", "a"), ("labels", "b")),
    )
    experiment = tiny_experiment(corpus)
    data = dataclasses.replace(experiment.data, source=source)
    experiments = {
        "classes": dataclasses.replace(
            experiment,
            data=data,
            objective=Classification(labels=("no", "yes")),
            model=bert.config("base", vocab_size=260, head="classes", num_labels=2),
        ),
        "stories": dataclasses.replace(experiment, data=data, objective=CausalLM(), model=model.config),
    }

    def load_run(workdir, from_checkpoint, average_last):
        assert (from_checkpoint, average_last) == ("best", None)
        return TrainedRun(experiments[workdir], model.tokenizer, model.params, (7,))

    monkeypatch.setattr(loading, "load_run", load_run)
    classes, stories = (load_model(None, workdir, "best") for workdir in ("classes", "stories"))
    assert (classes.labels, classes.prompt_start) == (("no", "yes"), ())
    # A document begins after eos in training.
    assert (stories.labels, stories.prompt_start, stories.family.name) == ((), (2,), "gpt2")
    found = [found.generate("abc", max_new_tokens=9) for found in (stories, model)]
    after_eos = generate_texts(
        model.config, model.params, model.tokenizer, ["abc"], max_new_tokens=9, prompt_start=(2,)
    )
    assert found[0] == after_eos[0] != found[1]
