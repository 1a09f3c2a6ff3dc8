"""Rates of dropout in heads: read from ``config.json`` by the head, and written back."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from tests.parity.test_fixtures import STORED
from tests.pretrained.test_reading import change_config
from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.pretrained.config_json import content_of
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained


def copy_of(name, tmp_path, **changes):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    change_config(folder, **changes)
    return folder


RATES = dict(seq_classif_dropout=0.3, qa_dropout=0.4)


@pytest.mark.parametrize(
    ("name", "changes", "rate"),
    [
        ("bert_sequence", dict(classifier_dropout=0.3), 0.3),
        ("bert_sequence", {}, None),
        ("bert_tokens", dict(classifier_dropout=0.0), 0.0),
        ("bert_qa", dict(classifier_dropout=0.3), None),  # this head has none in transformers
        ("roberta_sequence", dict(classifier_dropout=0.3), 0.3),
        ("distilbert_sequence", RATES, 0.3),
        ("distilbert_sequence", {}, 0.2),
        ("distilbert_sequence", dict(seq_classif_dropout=None), 0.2),  # the default of transformers
        ("distilbert_masked_lm", RATES, None),
    ],
)
def test_the_rate_is_read_and_written_back(name, changes, rate, tmp_path):
    ours = from_pretrained(copy_of(name, tmp_path, **changes))
    assert ours.config.head_dropout == rate
    save_pretrained(tmp_path / "again", ours)
    assert from_pretrained(tmp_path / "again").config == ours.config
    content = json.loads((tmp_path / "again/config.json").read_text())
    keys = (
        {"classes": "seq_classif_dropout"}
        if name.startswith("distil")
        else dict.fromkeys(("classes", "token_classes"), "classifier_dropout")
    )
    written = {key: content[key] for key in ("classifier_dropout", *RATES) if key in content}
    assert written == ({keys[ours.config.head]: rate} if ours.config.head in keys else {})


@pytest.mark.parametrize(
    ("name", "head", "rate"),
    [
        ("distilbert_masked_lm", "classes", 0.3),
        ("distilbert_masked_lm", "spans", 0.4),
        ("distilbert_sequence", "spans", 0.4),
        ("distilbert_sequence", "token_classes", None),  # the rate of the model
        ("bert_sequence", "spans", None),
        ("bert_masked_lm", "token_classes", 0.5),
    ],
)
def test_another_head_has_its_own_rate(name, head, rate, tmp_path):
    folder = copy_of(name, tmp_path, **RATES, classifier_dropout=0.5)
    changes = dict(head=head, num_labels=0 if head == "spans" else 3)
    assert from_pretrained(folder, **changes).config.head_dropout == rate
    assert from_pretrained(folder, **changes, head_dropout=0.6).config.head_dropout == 0.6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.1", r"has classifier_dropout='0.1', which must be one number"),
        (1.5, r"model.head_dropout=1.5 must"),
    ],
)
def test_a_rate_that_is_none_is_refused(value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        from_pretrained(copy_of("bert_sequence", tmp_path, classifier_dropout=value))


@pytest.mark.parametrize(("head", "rate"), [("classes", 0.2), ("spans", 0.1), ("token_classes", None)])
def test_the_rates_of_a_new_distilbert(head, rate):
    changes = dict(head=head, num_labels=0 if head == "spans" else 2)
    assert families.distilbert.config("tiny", **changes).head_dropout == rate
    assert families.distilbert.config("tiny", **changes, head_dropout=0.6).head_dropout == 0.6


@pytest.mark.parametrize(
    ("head", "written"), [("classes", dict(seq_classif_dropout=0.1)), ("spans", dict(qa_dropout=0.0))]
)
def test_distilbert_gets_a_number_for_no_rate(head, written):
    changes = dict(head=head, num_labels=0 if head == "spans" else 2)
    config = families.distilbert.config("tiny", **changes, head_dropout=None)
    content = content_of(families.FAMILIES["distilbert"], config, ())
    assert content.items() >= written.items()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("roberta_sequence", dict(pooler_dropout=False)),
        ("t5", dict(output_dropout=False)),
        ("t5_encoder", dict(output_dropout=False)),
    ],
)
def test_where_dropout_is_in_training_makes_no_other_family(name, changes, tmp_path):
    ours = from_pretrained(STORED / name)
    changed = dataclasses.replace(ours, config=dataclasses.replace(ours.config, **changes))
    assert families.family_of(changed.config) is ours.family
    save_pretrained(tmp_path, changed)
    assert from_pretrained(tmp_path).config == ours.config
    assert from_pretrained(STORED / name, **changes).config == changed.config
