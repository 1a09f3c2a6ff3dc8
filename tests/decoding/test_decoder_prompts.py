"""Prompts of a decoder that has an encoder, against whole forward passes without a cache, token by token."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax as tj
from tests.decoding_model import reference_beam
from tests.drawn import drawn_params
from transformer_jax.decoding import Constraints, DecodingSettings, Generator, TextRules
from transformer_jax.decoding.settings import OWN_RULES

SIZES = dict(
    d_model=16, num_heads=2, key_size=8, value_size=8, d_feedforward=32, max_length=24, vocab_size=21
)
LAYERS = dict(num_encoder_layers=1, num_decoder_layers=2)
CONFIGS: dict[str, Any] = {
    "bart": tj.families.bart.config("base", **SIZES, **LAYERS),
    "t5": tj.families.t5.config("small", **SIZES, **LAYERS, eos_id=2),
    "scanned": tj.families.bart.config("base", **SIZES, **LAYERS, scan_layers=True),
}
LIMIT = 7
SOURCES = [np.array(tokens, np.int32) for tokens in ([5, 9, 12], [6, 7, 8, 9, 10, 11], [13], [14, 15])]
PROMPTS = [np.array(tokens, np.int32) for tokens in ([17], [], [8, 9, 8, 19, 9], [10, 11, 12])]
GREEDY = DecodingSettings(beam_size=1)
# Each row alone is another shape, which is compiled anew: one for every change, whose prompt is padded.
ROWS = [pytest.param((2,), id="one"), pytest.param((0, 1, 3), id="others", marks=pytest.mark.everything)]


@functools.cache
def params_of(name):
    """Parameters that are larger than initial ones, so that outputs differ."""
    return jax.tree.map(lambda leaf: 4 * leaf, drawn_params(CONFIGS[name], 5))


@functools.cache
def forward(name):
    model = tj.build(CONFIGS[name])

    @jax.jit
    def logits(params, source, segments, targets):
        ones = jnp.ones_like(targets)
        return model.apply(
            {"params": params}, source, targets, inputs_segments=segments, targets_segments=ones
        )

    return logits


def next_logits(name, source, prompt, output):
    """The logits after ``prompt`` and ``output``, from one pass over all tokens."""
    given = [*prompt, *output]
    # One length of sources and one of targets, for one program.
    inputs, segments, targets = (
        np.zeros((1, 6), np.int32),
        np.zeros((1, 6), np.int32),
        np.zeros((1, 16), np.int32),
    )
    inputs[0, : len(source)], segments[0, : len(source)], targets[0, : len(given)] = source, 1, given
    logits = forward(name)(params_of(name), inputs, segments, targets)
    return np.array(logits[0, len(given)], np.float64)


def next_log_probs(name, source, prompt, output):
    logits = next_logits(name, source, prompt, output)
    log_probs = logits - np.logaddexp.reduce(logits)
    log_probs[CONFIGS[name].pad_id] = -np.inf  # never decoded
    return log_probs


def plain_greedy(name, source, prompt, allow=lambda logits, given, position: logits, limit=LIMIT):
    config, output = CONFIGS[name], []
    while len(output) < limit and config.eos_id not in output:
        logits = next_logits(name, source, prompt, output)
        logits[config.pad_id] = -np.inf  # never decoded
        given = [config.decoder_start_id, *prompt, *output]
        output.append(int(np.argmax(allow(logits.copy(), given, len(output)))))
    return output


@functools.cache
def generator(name, settings=GREEDY, rules=OWN_RULES):
    """One for all tests, for the programs that it has compiled."""
    config = CONFIGS[name]
    return Generator(
        config, settings, config.vocab_size, output_length=lambda _: LIMIT, batch_size=4, rules=rules
    )


def generate(made, name, prompts: Any = PROMPTS):
    outputs = made.generate(params_of(name), SOURCES, decoder_prompts=prompts)
    return [output.tolist() for output in outputs]


# Scanned layers read prompts for every change with beams, below.
@pytest.mark.parametrize("name", ["bart", "t5", pytest.param("scanned", marks=pytest.mark.everything)])
def test_greedy_outputs_continue_their_prompts(name):
    expected = [plain_greedy(name, *pair) for pair in zip(SOURCES, PROMPTS, strict=True)]
    assert generate(generator(name), name) == expected
    without = [plain_greedy(name, source, []) for source in SOURCES]
    assert generate(generator(name), name, None) == without
    assert sum(a != b for a, b in zip(expected, without, strict=True)) >= 2  # or a prompt changes nothing


@pytest.mark.parametrize("rows", ROWS)
# Greedy streams are compared for every change with each constraint, below.
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(GREEDY, id="greedy", marks=pytest.mark.everything),
        pytest.param(DecodingSettings(temperature=1.5, top_k=9, seed=3), id="sampled"),
    ],
)
def test_rows_alone_and_streams_give_the_same(settings, rows):
    made, params = generator("bart", settings), params_of("bart")
    together = generate(made, "bart")
    for number in rows:
        source, prompt = SOURCES[number], PROMPTS[number]
        assert made.generate(params, [source], [number], [prompt])[0].tolist() == together[number]
        assert list(made.stream(params, source, number, prompt)) == together[number]
    by_default = generator("bart", settings, TextRules(decoder_prompt=(8, 9, 7, 5)))
    explicit = generate(made, "bart", [np.array([8, 9, 7, 5], np.int32)] * 4)
    assert generate(by_default, "bart", None) == explicit
    for number in rows:
        assert list(by_default.stream(params, SOURCES[number], number)) == explicit[number]


@pytest.mark.parametrize("settings", [GREEDY, DecodingSettings(beam_size=3)], ids=str)
def test_empty_prompts_are_none(settings):
    made = generator("t5", settings)
    assert generate(made, "t5", [np.zeros(0, np.int32)] * 4) == generate(made, "t5", None)


@pytest.mark.parametrize(
    "name", ["scanned", *(pytest.param(name, marks=pytest.mark.everything) for name in ("bart", "t5"))]
)
def test_beams_continue_their_prompts(name):
    for penalty in (0.6, 5.0):
        settings = DecodingSettings(beam_size=3, length_penalty=penalty)
        found = generate(generator(name, settings), name)
        for source, prompt, output in zip(SOURCES, PROMPTS, found, strict=True):
            log_probs = functools.partial(next_log_probs, name, source, prompt)
            assert tuple(output) == reference_beam(log_probs, LIMIT, penalty, 3)[0][0]


def repeating(text, size):
    """The tokens after which the last ``size`` tokens of ``text`` have been there before."""
    windows = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    return [token for token in range(21) if (*text[len(text) - size + 1 :], token) in windows]


def forbid(tokens):
    def allow(logits, given, position):
        logits[tokens(given, position)] = -np.inf
        return logits

    return allow


def only(token, where):
    return forbid(lambda given, made: [i for i in range(21) if i != token] if where(given, made) else [])


# What each rule does, with the start token and the prompt in ``given``, and tokens ``made`` after them.
RULES = {
    "min_length": (dict(min_length=6), forbid(lambda given, made: [2] if len(given) < 6 else [])),
    "min_new_tokens": (dict(min_new_tokens=3), forbid(lambda given, made: [2] if made < 3 else [])),
    "no_repeat": (dict(no_repeat_ngram_size=2), forbid(lambda given, made: repeating(given, 2))),
    "forced_bos": (dict(forced_bos_id=4), only(4, lambda given, made: len(given) == 1)),
    "forced_eos": (dict(forced_eos_id=2), only(2, lambda given, made: made == LIMIT - 1)),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "rule",
    # ``test_constraints`` has a minimum length that counts the prompt for every change too.
    [pytest.param(name, marks=[pytest.mark.everything] * (name == "min_length")) for name in RULES],
)
def test_constraints_count_the_prompt(rule, rows):
    constraints, allow = RULES[rule]
    expected = [plain_greedy("bart", *pair, allow) for pair in zip(SOURCES, PROMPTS, strict=True)]
    made = generator("bart", rules=TextRules(constraints=Constraints(**constraints)))
    assert generate(made, "bart") == expected
    for number in rows:
        streamed = made.stream(params_of("bart"), SOURCES[number], number, PROMPTS[number])
        assert list(streamed) == expected[number]


def test_the_limit_counts_the_prompt():
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3], PROMPTS[3]]
    expected = [
        plain_greedy("bart", source, prompt, limit=5 - len(prompt))
        for source, prompt in zip(SOURCES, prompts, strict=True)
    ]
    assert generate(generator("bart", rules=TextRules(max_length=6)), "bart", prompts) == expected
    # The model has 24 positions: of the start token, 21 tokens of the prompt, and two that are fed back.
    long = np.full(21, 9, np.int32)
    (found,) = generator("bart").generate(params_of("bart"), SOURCES[:1], decoder_prompts=[long])
    assert len(found) <= 3


@pytest.mark.parametrize(
    ("prompts", "rules", "message"),
    [
        ([[5], [6]], {}, "2 decoder prompts do not fit 4 sources"),
        (
            [[5], [6], [7] * 24, [8]],
            {},
            "decoder prompt of sequence 3 has 24 tokens, the model takes at most 23",
        ),
        (
            [[5], [6, 7], [], []],
            dict(max_length=3),
            "sequence 2 has 3 tokens, and max_length=3 leaves no room",
        ),
        (None, dict(decoder_prompt=(5, 21)), "decoder_prompt has the token 21, the model those from 0 to 20"),
    ],
)
def test_prompts_that_cannot_be(prompts, rules, message):
    with pytest.raises(ValueError, match=message):
        arrays = prompts and [np.array(prompt, np.int32) for prompt in prompts]
        generate(generator("bart", rules=TextRules(**rules)), "bart", arrays)


def test_a_decoder_alone_has_no_second_prompt():
    config = dataclasses.replace(CONFIGS["bart"], num_encoder_layers=0)
    alone = Generator(config, GREEDY, 21, output_length=lambda _: 3, batch_size=4)
    with pytest.raises(ValueError, match="decoder-only model continues the sequence itself"):
        alone.generate({}, SOURCES, decoder_prompts=PROMPTS)
