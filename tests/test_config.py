"""Every mistake in a config is one clear error, and what is right goes through unchanged."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import ml_collections
import pytest

from transformer_jax.config import (
    ConfigError,
    check_keys,
    check_types,
    read_section,
)
from transformer_jax.models import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 3
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class Outer:
    required: int
    rate: float = 0.5
    name: str = "x"
    active: bool = False
    limit: int | None = None
    choice: Literal["one", "two"] = "one"
    pair: tuple[str, int] = ("a", 1)
    rules: tuple[tuple[str, str | None], ...] = ()
    inner: Inner = Inner()
    maybe_inner: Inner | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative")


def plain(**changes: Any) -> dict[str, Any]:
    return dataclasses.asdict(Outer(required=1)) | changes


def test_a_section_comes_back_as_it_was() -> None:
    section = Outer(
        required=7,
        limit=4,
        rules=(("embed", "data"), ("heads", None)),
        inner=Inner(5),
        maybe_inner=Inner(6, ("b", "c")),
    )
    values = dataclasses.asdict(section)
    assert read_section(Outer, values, "outer") == section
    assert read_section(Outer, ml_collections.ConfigDict(values), "outer") == section
    assert read_section(Outer, ml_collections.FrozenConfigDict(values), "outer") == section


def test_a_section_that_went_through_json_comes_back_as_it_was() -> None:
    section = Outer(required=7, rules=(("embed", "data"), ("heads", None)), inner=Inner(5, ("b",)))
    values = json.loads(json.dumps(dataclasses.asdict(section)))
    assert isinstance(values["rules"][0], list)
    assert read_section(Outer, values, "outer") == section
    assert read_section(Outer, ml_collections.ConfigDict(values), "outer") == section


def test_the_models_config_comes_back_as_it_was() -> None:
    config = TransformerConfig(vocab_size=100, d_model=8, positions="learned", dropout=0.0)
    values = ml_collections.ConfigDict(dataclasses.asdict(config))
    assert read_section(TransformerConfig, values, "model") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": 0.5}, r"config\.outer has no key 'rates': did you mean 'rate'\?"),
        ({"Required": 2}, r"config\.outer has no key 'Required': did you mean 'required'\?"),
        ({"zzz": 0}, r"config\.outer has no key 'zzz': it has required, rate, name"),
        ({"inner": {"sise": 3, "names": ("a",)}}, r"config\.outer\.inner .*'sise'.*'size'"),
        ({"inner": {"size": 3}}, r"config\.outer\.inner lacks the key\(s\) names"),
        ({"maybe_inner": {"size": 3}}, r"config\.outer\.maybe_inner lacks the key\(s\) names"),
        ({"inner": 3}, r"config\.outer\.inner must be a section of keys, not 3"),
        ({"inner": None}, r"config\.outer\.inner must be a section of keys, not None"),
        ({"inner": {"size": "3", "names": ()}}, r"config\.outer\.inner\.size must be int, not '3'"),
        ({"required": 1.0}, r"config\.outer\.required must be int, not 1\.0 of type float"),
        ({"required": True}, r"config\.outer\.required must be int, not True of type bool"),
        ({"required": None}, r"config\.outer\.required must be int, not None"),
        ({"rate": "0.5"}, r"config\.outer\.rate must be float, not '0\.5' of type str"),
        ({"rate": False}, r"config\.outer\.rate must be float, not False"),
        ({"name": 3}, r"config\.outer\.name must be str, not 3"),
        ({"active": 1}, r"config\.outer\.active must be bool, not 1"),
        ({"active": "false"}, r"config\.outer\.active must be bool, not 'false'"),
        ({"limit": 2.5}, r"config\.outer\.limit must be int \| None, not 2\.5"),
        ({"choice": "three"}, r"config\.outer\.choice must be .*'one', 'two'.* not 'three'"),
        ({"choice": "onee"}, r"did you mean 'one'\?"),
        ({"choice": 1}, r"config\.outer\.choice must be .*'one', 'two'.* not 1"),
        ({"pair": ("a", 1, 2)}, r"config\.outer\.pair must be tuple\[str, int\]"),
        ({"pair": ("a", "b")}, r"config\.outer\.pair must be tuple\[str, int\]"),
        ({"pair": "a1"}, r"config\.outer\.pair must be tuple\[str, int\]"),
        ({"rules": (("a", 1),)}, r"config\.outer\.rules must be tuple"),
        ({"rules": ["ab"]}, r"config\.outer\.rules must be tuple"),
        ({"rate": -1.0}, r"config\.outer: rate=-1\.0 must not be negative"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_section(Outer, plain(**changes), "outer")
    with pytest.raises(ConfigError, match=message):
        read_section(Outer, ml_collections.ConfigDict(plain(**changes)), "outer")


def test_missing_keys_are_all_named_even_those_with_a_default() -> None:
    values = plain()
    del values["required"], values["rate"]
    with pytest.raises(ConfigError, match=r"config\.outer lacks the key\(s\) required, rate$"):
        read_section(Outer, values, "outer")


def test_a_misspelt_key_is_reported_as_such_and_not_as_missing() -> None:
    values = plain()
    values["requird"] = values.pop("required")
    with pytest.raises(ConfigError, match="no key 'requird': did you mean 'required'"):
        read_section(Outer, values, "outer")


@pytest.mark.parametrize("values", [3, "model", None, [("required", 1)]])
def test_a_section_must_have_keys(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.outer must be a section of keys, not"):
        read_section(Outer, values, "outer")


def test_whole_numbers_are_good_where_a_float_is_wanted() -> None:
    section = read_section(Outer, plain(rate=1), "outer")
    assert section.rate == 1
    assert isinstance(section.rate, float)


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_check_keys_accepts_exactly_the_known() -> None:
    check_keys(["b", "a"], ["a", "b"], "here")
    with pytest.raises(ConfigError, match=r"^here lacks the key\(s\) b$"):
        check_keys(["a"], ["a", "b"], "here")
    with pytest.raises(ConfigError, match=r"^here has no key 'c': it has a, b$"):
        check_keys(["a", "b", "c"], ["a", "b"], "here")


def test_check_types_catches_what_a_program_passes() -> None:
    check_types(Outer(required=1), "outer")
    with pytest.raises(ConfigError, match=r"config\.outer\.required must be int"):
        check_types(Outer(required="1"), "outer")


@dataclasses.dataclass(frozen=True)
class Linked:
    """A section as a program outside the library may write it."""

    weights: Mapping[str, float]
    function: Callable[[int], int] = abs
    next: Self | None = None


def test_sections_may_have_types_with_parameters_and_self() -> None:
    section = Linked({"a": 1.0}, next=Linked({}))
    check_types(section, "linked")
    values = {"weights": {}, "function": abs, "next": None}
    assert read_section(Linked, values | {"next": values}, "linked").next == Linked({})
    for changes, message in (
        ({"weights": 3}, r"config\.linked\.weights must be .*Mapping\[str, float\], not 3"),
        ({"function": 3}, r"config\.linked\.function must be .*not 3"),
        ({"next": 3}, r"config\.linked\.next must be a section of keys, not 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_section(Linked, values | changes, "linked")
    with pytest.raises(ConfigError, match=r"config\.linked\.next must be .*Linked.*not Outer"):
        check_types(Linked({}, next=Outer(1)), "linked")  # type: ignore[arg-type]


def test_the_defaults_are_the_papers_base_model() -> None:
    config = TransformerConfig(vocab_size=37_000)
    assert (config.d_model, config.num_heads, config.d_feedforward) == (512, 8, 2048)
    assert (config.num_encoder_layers, config.num_decoder_layers) == (6, 6)
    assert (config.dropout, config.norm_position, config.positions) == (0.1, "post", "sinusoidal")


def test_the_models_config_is_frozen_and_hashable() -> None:
    config = TransformerConfig(vocab_size=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 3
    assert hash(config) == hash(TransformerConfig(vocab_size=10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"model\.vocab_size=0 must be at least 1"),
        ({"d_model": -8}, r"model\.d_model=-8 must be at least 1"),
        ({"num_heads": 0}, r"model\.num_heads=0 must be at least 1"),
        ({"max_length": 0}, r"model\.max_length=0 must be at least 1"),
        ({"num_encoder_layers": -1}, r"model\.num_encoder_layers=-1 must not be negative"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0 must be in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"model\.attention_dropout=-0\.1 must be in"),
        ({"feedforward_dropout": 2}, r"model\.feedforward_dropout=2(\.0)? must be in"),
        ({"norm_epsilon": 0.0}, r"model\.norm_epsilon=0\.0 must be above 0"),
        ({"d_model": 7}, r"sinusoidal positions need an even model\.d_model, not 7"),
        ({"pad_id": 100}, r"model\.pad_id=100 is outside the vocabulary of 100 tokens"),
        ({"eos_id": -1}, r"model\.eos_id=-1 is outside the vocabulary"),
        ({"dtype": "float16"}, r"config\.model\.dtype must be .*'float16'"),
        ({"norm_position": "prenorm"}, r"config\.model\.norm_position must be .*'prenorm'"),
        ({"scan_layers": 1}, r"config\.model\.scan_layers must be bool, not 1"),
        ({"d_model": 512.0}, r"config\.model\.d_model must be int, not 512\.0"),
    ],
)
def test_an_impossible_model_is_refused(changes: dict[str, Any], message: str) -> None:
    values = dataclasses.asdict(TransformerConfig(vocab_size=100))
    with pytest.raises(ConfigError, match=message):
        read_section(TransformerConfig, values | changes, "model")
