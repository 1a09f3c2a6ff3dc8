"""Brings a config that an earlier version stored with a run to the keys of today.

This is the one place that knows the keys of earlier versions. A config file of an experiment is not brought
to date: there, a key that is missing or unknown is an error.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_jax.models.attention import FullAttention
from transformer_jax.models.front_ends import FRONT_ENDS, Tokens

# By section: keys that it has gained, each with the value that means what runs did before. "" is the config.
ADDED_KEYS: dict[str, dict[str, Any]] = {
    "": {"extensions": []},
    "model": {
        "front_end": dataclasses.asdict(Tokens()),
        "attention": [dataclasses.asdict(FullAttention())],
        "residual": "plain",
        "encoder_changes": [],
        "decoder_changes": [],
        "pooler": "tanh",
        "pooler_dropout": False,
        "head_dropout": None,
    },
}

# The builders of data sets that were part of the library, by the name of the data set.
BUILDERS = {"caption_questions": "experiments.caption_questions:CaptionQuestions"}


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config with the keys of today.

    Args:
      stored: the content of a run's config.json, sections of plain values; or some of its sections.
    """
    config = _copied(stored)
    for model in _sections(config, ["model"]):
        for front_end in FRONT_ENDS.values():
            front_end.upgrade(model)
    for name in ("source", "more_sources"):
        for source in _sections(config, ["data", name]):
            builder = BUILDERS.get(str(source.get("name")).partition("/")[0], "")
            source.setdefault("builder_class", builder)
    for path, added in ADDED_KEYS.items():
        for section in _sections(config, path.split(".") if path else []):
            for key, value in added.items():
                section.setdefault(key, value)
    return config


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def _sections(value: Any, steps: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the sections at a path; a list in it stands for each of its members."""
    if isinstance(value, list):
        for item in value:
            yield from _sections(item, steps)
    elif isinstance(value, dict):
        if not steps:
            yield value
        elif steps[0] in value:
            yield from _sections(value[steps[0]], steps[1:])
