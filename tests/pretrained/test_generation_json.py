"""What a checkpoint's files say of generating: read, overruled, told where it is not done, written again."""

import inspect
import io
import json
import shutil
import types

import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from tests.word_tokenizers import word_tokenizer
from transformer_jax import generate
from transformer_jax.config import ConfigError
from transformer_jax.decoding.beam_rules import TRANSFORMERS_RULE, WU_RULE
from transformer_jax.decoding.constraints import UNCONSTRAINED, Constraints
from transformer_jax.decoding.generator import Generator
from transformer_jax.inference.defaults import GenerationDefaults
from transformer_jax.pretrained.generation_json import GENERATION_FILE, _defaults
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

# As the published bart-large-cnn has them, with tokens of the fixture.
SUMMARIES = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 14,
    "min_length": 5,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
    "transformers_version": "4.27.0.dev0",
}


# Flags of ``generate`` for what a caller may choose.
CHOICES = list(inspect.signature(GenerationDefaults.chosen).parameters)


@pytest.fixture
def read(tmp_path):
    """The defaults of a fixture whose generation_config.json has ``content``; None is no such file."""

    def read(content, name="bart", **in_config):
        shutil.copytree(STORED / name, tmp_path, dirs_exist_ok=True)
        if content is not None:
            (tmp_path / GENERATION_FILE).write_text(json.dumps(content))
        config = json.loads((STORED / name / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | in_config))
        return from_pretrained(tmp_path).generation

    return read


def test_what_the_file_says_is_what_generate_does(read, capsys):
    settings, rules, max_new_tokens = read(SUMMARIES).chosen()
    assert (settings.beam_size, settings.length_penalty, settings.temperature) == (4, 2.0, 0.0)
    assert rules.beams.early_stopping is True and rules.beams.weighing == "power"
    assert rules.constraints == Constraints(
        no_repeat_ngram_size=3, min_length=5, forced_bos_id=0, forced_eos_id=2
    )
    assert (rules.max_length, max_new_tokens) == (14, 13)
    assert "not supported here" not in capsys.readouterr().err


def test_what_a_caller_says_wins(read):
    defaults = read(SUMMARIES)
    settings, rules, max_new_tokens = defaults.chosen(
        max_new_tokens=30, min_new_tokens=0, beam_size=2, length_penalty=0.5, early_stopping="never"
    )
    assert (settings.beam_size, settings.length_penalty) == (2, 0.5)
    assert (rules.beams.early_stopping, rules.max_length, max_new_tokens) == ("never", None, 30)
    assert (rules.constraints.min_length, rules.constraints.no_repeat_ngram_size) == (0, 3)
    assert defaults.chosen(no_repeat_ngram_size=0).rules.constraints.no_repeat_ngram_size == 0
    drawn = defaults.chosen(temperature=0.7).settings
    assert (drawn.beam_size, drawn.temperature, drawn.top_k) == (1, 0.7, 50)


def test_sampling_by_the_file(read):
    defaults = read({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, "gpt2")
    drawn = defaults.chosen().settings
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.beam_size) == (0.6, 50, 0.9, 1)
    assert defaults.chosen(top_k=7).settings.top_k == 7
    assert defaults.chosen(temperature=0.0).settings.top_p == 1.0
    searched = defaults.chosen(beam_size=3).settings
    assert (searched.temperature, searched.beam_size) == (0.0, 3)
    # Without do_sample these numbers wait for a caller who samples.
    defaults = read({"temperature": 0.6, "top_k": 5}, "gpt2")
    assert (defaults.chosen().settings.temperature, defaults.chosen().settings.top_k) == (0.0, 0)
    assert defaults.chosen(temperature=1.0).settings.top_k == 5


def test_a_checkpoint_draws_from_the_tokens_that_transformers_draws_from(read):
    """The 50 most probable ones, or all where the vocabulary is smaller; a run from all of its own."""
    assert read(None, "gpt2").chosen(temperature=1.0).settings.top_k == 50
    assert read(None, "gpt2").chosen(temperature=1.0, top_k=0).settings.top_k == 0
    assert read({"do_sample": True, "top_k": 500}, "gpt2").chosen().settings.top_k == 67
    assert _defaults({}, {}, vocab_size=30).chosen(temperature=1.0).settings.top_k == 30
    assert GenerationDefaults().chosen(temperature=1.0).settings.top_k == 0


def test_without_a_file_and_of_a_run(read):
    settings, rules, max_new_tokens = read(None, "gpt2").chosen()
    assert (settings.beam_size, settings.length_penalty, max_new_tokens) == (1, 1.0, 128)
    assert rules.beams == TRANSFORMERS_RULE and rules.constraints == UNCONSTRAINED
    settings, rules, max_new_tokens = GenerationDefaults().chosen()
    assert (settings.length_penalty, rules.beams, max_new_tokens) == (0.6, WU_RULE, 128)


def test_config_json_counts_where_there_is_no_other_file(read):
    older = dict(num_beams=3, min_length=4, forced_eos_token_id=2)
    settings, rules, _ = read(None, **older).chosen()
    assert (settings.beam_size, rules.constraints.min_length, rules.constraints.forced_eos_id) == (3, 4, 2)
    settings, rules, _ = read({"num_beams": 2}, **older).chosen()
    assert (settings.beam_size, rules.constraints) == (2, UNCONSTRAINED)


def test_banned_tokens(read):
    content = {"bad_words_ids": [[1], [2], [7]], "suppress_tokens": [9], "eos_token_id": 2}
    assert read(content).rules.constraints.banned_ids == (1, 7, 9)  # eos is none, as there


def test_what_is_not_done_is_told_once_in_one_line(read, capsys):
    read(SUMMARIES | {"repetition_penalty": 1.2, "bad_words_ids": [[4, 5]], "top_h": None, "new_key": 3})
    told = [line for line in capsys.readouterr().err.splitlines() if "not supported here" in line]
    assert len(told) == 1 and GENERATION_FILE in told[0]
    assert told[0].endswith("repetition_penalty=1.2, new_key=3, bad_words_ids=[[4, 5]]")
    read({"eos_token_id": [2, 5], "do_sample": True, "num_beams": 4, "decoder_start_token_id": 0})
    told = capsys.readouterr().err
    assert "do_sample=True, eos_token_id=[2, 5], decoder_start_token_id=0" in told
    read({"repetition_penalty": 1.0, "eos_token_id": [2], "num_return_sequences": 1, "typical_p": 1.0})
    assert "not supported here" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_beams": "4"}, "num_beams='4', which must be int"),
        ({"num_beams": True}, "num_beams=True, which must be int"),
        (
            {"num_beams": 0},
            "has settings that cannot be used: beam_size=0 must be at least 1",
        ),
        (
            {"early_stopping": "sometimes"},
            "has settings that cannot be used: early_stopping='sometimes' must be",
        ),
        (
            {"forced_eos_token_id": 99},
            "has settings that cannot be used: forced_eos_id has the token 99",
        ),
        ({"bad_words_ids": [1]}, "has settings that cannot be used"),
        (
            {"max_length": 1},
            "has settings that cannot be used: max_length=1 must be at least 2",
        ),
        ([1], "must be a JSON object"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_followed(read, content, message):
    with pytest.raises(ConfigError, match=message):
        read(content)


def test_the_file_is_written_again(read, tmp_path):
    content = SUMMARIES | {"repetition_penalty": 1.2, "max_time": None}
    read(content)
    target = tmp_path / "written"
    save_pretrained(target, from_pretrained(tmp_path))
    assert json.loads((target / GENERATION_FILE).read_text()) == content
    assert from_pretrained(target).generation.chosen() == from_pretrained(tmp_path).generation.chosen()
    save_pretrained(target, from_pretrained(STORED / "gpt2"))
    assert not (target / GENERATION_FILE).exists(), "another model's"


def test_what_config_json_said_is_written_with_the_special_tokens_of_a_file(tmp_path):
    save_pretrained(tmp_path, from_pretrained(STORED / "bart"))
    assert json.loads((tmp_path / GENERATION_FILE).read_text()) == {
        "bos_token_id": 0,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
        "pad_token_id": 1,
    }


def test_a_prompt_that_leaves_no_room_is_named(tmp_path):
    shutil.copytree(STORED / "gpt2", tmp_path, dirs_exist_ok=True)
    (tmp_path / GENERATION_FILE).write_text(json.dumps({"max_length": 4}))
    model = from_pretrained(tmp_path)
    settings, rules, longest = model.generation.chosen()
    generator = Generator(
        model.config, settings, 67, output_length=lambda _: longest, batch_size=2, rules=rules
    )
    made = generator.generate(model.params, [np.array([5, 6, 7], np.int32)])
    assert [len(tokens) for tokens in made] == [1]
    with pytest.raises(ValueError, match="sequence 2 has 4 tokens, and max_length=4 leaves no room"):
        generator.generate(model.params, [np.array([5], np.int32), np.array([5, 6, 7, 8], np.int32)])


def test_the_lines_before_a_prompt_that_leaves_no_room_are_worked_on(tmp_path, monkeypatch, capsys):
    shutil.copytree(STORED / "gpt2", tmp_path, dirs_exist_ok=True)
    (tmp_path / GENERATION_FILE).write_text(json.dumps({"max_length": 4}))
    word_tokenizer("gpt2", tmp_path)
    model = from_pretrained(tmp_path)
    lines = b"w5\nw5 w6 w7\nw5 w6 w7 w8\nw9\n"
    choices = dict.fromkeys([*CHOICES, "decoder_prompt"])
    monkeypatch.setattr(generate, "FLAGS", types.SimpleNamespace(**choices, batch_size=2))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    message = "line 3 of standard input: text 3 has 4 tokens, and max_length=4 leaves no room"
    with pytest.raises(ValueError, match=message):
        generate._generate_lines(model)
    assert capsys.readouterr().out.splitlines() == model.generate(["w5", "w5 w6 w7"])
    with pytest.raises(ValueError, match="text 1 has 4 tokens, and max_length=4 leaves no room"):
        model.stream("w5 w6 w7 w8")
