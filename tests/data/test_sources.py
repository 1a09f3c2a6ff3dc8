"""Sources: every kind reads what was written, and every misuse has its own clear message."""

import dataclasses
import gzip
import json
import os
import re
import sys
from typing import Any

import pytest

from tests.mock_dataset import mock_translate
from tests.started_processes import run_python
from transformer_jax.config import ConfigError, read_section
from transformer_jax.data.catalogue import TfdsSource
from transformer_jax.data.datasets.number_words import number_words
from transformer_jax.data.examples import DataError, MemorySource, Source
from transformer_jax.data.sources import SourceConfig, data_folder, load_source
from transformer_jax.data.text_files import read_lines

PAIRS = [
    ("A man sleeps.", "Ein Mann schläft."),
    ("Two lines\u2028in one", "Zwei Zeilen\x85in\x0beiner\x1c"),  # splitlines would part these
    ("", "leer"),
    (" spaces  kept ", "Größe"),
]


def examples(source):
    return [(example["inputs"], example["targets"]) for example in source.read(range(len(source)))]


def write(path, text, encoding="utf-8"):
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def text_config(folder, **changes):
    config = SourceConfig(kind="text", folder=str(folder), train=("a.en", "a.de"), validation=(), test=())
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
def test_aligned_text_files(tmp_path, suffix, line_end, last_end):
    for side, name in enumerate(("a.en", "a.de")):
        text = line_end.join(pair[side] for pair in PAIRS) + (line_end if last_end else "")
        write(tmp_path / f"{name}{suffix}", text)
    source = load_source(text_config(tmp_path, train=(f"a.en{suffix}", f"a.de{suffix}")), "train")
    assert isinstance(source, Source)
    assert examples(source) == PAIRS
    assert source.read([3, 0]) == [{"inputs": PAIRS[i][0], "targets": PAIRS[i][1]} for i in (3, 0)]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_columns(tmp_path, name):
    write(tmp_path / name, "".join(f"{i}\t{de}\t{en}\n" for i, (en, de) in enumerate(PAIRS)))
    config = SourceConfig(
        kind="tsv", folder=str(tmp_path), test=(name,), features=(("inputs", "2"), ("targets", "1"))
    )
    assert examples(load_source(config, "test")) == PAIRS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_keys(tmp_path, name):
    lines = [json.dumps({"en": en, "de": de, "id": 1}) for en, de in PAIRS]
    write(tmp_path / name, "\n".join(lines))
    config = SourceConfig(
        kind="jsonl", folder=str(tmp_path), train=(name,), features=(("inputs", "en"), ("targets", "de"))
    )
    assert examples(load_source(config, "train")) == PAIRS


def test_other_encodings(tmp_path):
    write(tmp_path / "a.en", "size\n", "latin-1")
    write(tmp_path / "a.de", "Größe\n", "latin-1")
    source = load_source(text_config(tmp_path, encoding="latin-1"), "train")
    assert examples(source) == [("size", "Größe")]


def test_the_data_folder(monkeypatch):
    monkeypatch.delenv("TRANSFORMER_JAX_DATA", raising=False)
    assert data_folder("") == "data"
    monkeypatch.setenv("TRANSFORMER_JAX_DATA", "elsewhere")
    assert data_folder("") == "elsewhere"
    assert data_folder("here") == "here"


def test_a_missing_file_says_where_it_looked(tmp_path, monkeypatch):
    write(tmp_path / "train.de.gz", "x\n")
    write(tmp_path / "train.en", "x\n")
    monkeypatch.setenv("TRANSFORMER_JAX_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        load_source(text_config("", train=("train.en", "train.de")), "train")
    message = str(error.value)
    assert "'train.de'" in message and str(tmp_path) in message
    assert "did you mean 'train.de.gz'?" in message and "TRANSFORMER_JAX_DATA" in message


def test_misaligned_files_give_both_line_counts(tmp_path):
    write(tmp_path / "a.en", "one\ntwo\nthree\n")
    write(tmp_path / "a.de", "eins\nzwei\n")
    with pytest.raises(DataError, match=r"a\.en has 3 lines but .*a\.de has 2;"):
        load_source(text_config(tmp_path), "train")


def test_an_empty_corpus(tmp_path):
    write(tmp_path / "a.en", "")
    write(tmp_path / "a.de", "")
    with pytest.raises(DataError, match=r"the train split is empty.*a\.en, a\.de"):
        load_source(text_config(tmp_path), "train")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_undecodable_text_gives_file_line_and_encoding(tmp_path, name):
    write(tmp_path / name, "gut\nGröße\n", "latin-1")
    with pytest.raises(DataError, match=r"a\.txt(\.gz)?, line 2: not utf-8 text"):
        read_lines(str(tmp_path / name))


def test_half_a_gzip_file(tmp_path):
    whole = gzip.compress(b"a line\n" * 1000)
    for content in (whole[:-6], whole[:12] + b"\0\1\2" + whole[15:], b"not gzip"):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.gz is not a whole gzip file"):
            read_lines(str(tmp_path / "a.gz"))


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        read_lines(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nc\n", r"a\.tsv, line 2: 1 tab-separated column\(s\) where 2 are needed"),
        ("a\tb\nc\td\te\n", r"line 2: 3 tab-separated column\(s\) where 2 are needed"),
        ("a\n", r"line 1: 1 tab-separated column\(s\) where 2 are needed"),
    ],
)
def test_tsv_with_the_wrong_number_of_columns(tmp_path, text, message):
    write(tmp_path / "a.tsv", text)
    config = SourceConfig(
        kind="tsv", folder=str(tmp_path), train=("a.tsv",), features=(("inputs", "0"), ("targets", "1"))
    )
    with pytest.raises(DataError, match=message):
        load_source(config, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"inputs": "a"', r"a\.jsonl, line 2: broken JSON"),
        ("", r"line 2: broken JSON"),
        ('["a", "b"]', r"line 2: must be a JSON object"),
        ('{"inputs": "a", "target": "b"}', r"no key 'targets': did you mean 'target'\?"),
        ('{"inputs": "a", "targets": 3}', r"line 2: 'targets' must be a text to be targets, not 3"),
    ],
)
def test_bad_jsonl(tmp_path, line, message):
    write(tmp_path / "a.jsonl", f'{{"inputs": "a", "targets": "b"}}\n{line}\n')
    config = SourceConfig(kind="jsonl", folder=str(tmp_path), train=("a.jsonl",))
    with pytest.raises(DataError, match=message):
        load_source(config, "train")


def test_unknown_and_unset_splits(tmp_path):
    with pytest.raises(DataError, match=r"no split 'tests': did you mean 'test'\?"):
        load_source(text_config(tmp_path), "tests")
    with pytest.raises(DataError, match=r"no test split: set config\.data\.source\.test"):
        load_source(text_config(tmp_path), "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "csv"}, "kind"),
        ({"kind": "text"}, r"source\.train=\('train',\) must have 2 name"),
        ({"train": ("a", "b")}, r"must have 1 name"),
        ({"kind": "tsv"}, r"the column of 'inputs' in a TSV file must be a number"),
        ({"encoding": "utf-9"}, "not an encoding"),
    ],
)
def test_impossible_configs(changes, message):
    values = {"kind": "tfds", "name": "a", "folder": "", "train": ("train",), "validation": ()}
    values |= {"test": (), "features": (("inputs", "inputs"), ("targets", "targets"))}
    values |= {"pattern": "", "prefix": "", "builder_class": "", "encoding": "utf-8"}
    with pytest.raises(ConfigError, match=message):
        read_section(SourceConfig, values | changes, "data.source")


def test_sides_of_different_lengths():
    with pytest.raises(DataError, match="1 inputs but 2 targets"):
        MemorySource({"inputs": ["a"], "targets": ["b", "c"]})


# TFDS


@pytest.fixture
def small_number_words(monkeypatch):
    sizes = {"train": 1_200, "validation": 20, "test": 20}
    monkeypatch.setattr(number_words, "SPLIT_SIZES", sizes)


def test_number_words_is_prepared_on_first_use_and_reused(tmp_path, small_number_words, monkeypatch):
    config = SourceConfig(folder=str(tmp_path))
    first = load_source(config, "test")
    assert isinstance(first, Source)
    prepared = []
    monkeypatch.setattr(number_words.NumberWords, "download_and_prepare", lambda self: prepared.append(self))
    assert examples(load_source(config, "test")) == examples(first)
    assert len(load_source(config, "train")) == 1_200
    assert not prepared
    in_order = first.read(range(20))
    assert first.read([5, 2]) == [in_order[5], in_order[2]]
    assert "tensorflow" not in sys.modules


def test_losing_the_race_to_prepare_is_no_error(tmp_path, small_number_words, monkeypatch):
    prepare: Any = number_words.NumberWords.download_and_prepare

    def prepare_and_lose(self):
        prepare(self)
        raise OSError("Directory not empty")

    monkeypatch.setattr(number_words.NumberWords, "download_and_prepare", prepare_and_lose)
    assert len(load_source(SourceConfig(folder=str(tmp_path)), "test")) == 20


PREPARE_ON_A_FULL_DISK = """
import resource, signal, sys
from transformer_jax.data import DataError, SourceConfig, load_source
from transformer_jax.data.datasets.number_words import number_words

number_words.SPLIT_SIZES = {"train": 1_200, "validation": 20, "test": 20}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    load_source(SourceConfig(folder=sys.argv[1]), "test")
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("most_bytes", [0, 10_000])  # no file at all, and not the records
def test_a_full_disk_while_preparing(tmp_path, single_device_environment, most_bytes):
    ended = run_python(PREPARE_ON_A_FULL_DISK, tmp_path, single_device_environment, str(most_bytes))
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"cannot prepare .*File too large.*; set .*TRANSFORMER_JAX_DATA", ended.stdout)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*/none, where 'a.en' should be"):
        load_source(text_config(tmp_path / "none"), "train")


def test_text_that_is_not_utf8_within_tfds_is_named():
    class Records:
        def __getitems__(self, indices):
            return [{"en": b"good", "de": b"bad \xff" if i == 7 else b"gut"} for i in indices]

    source = TfdsSource("some/data, train", Records(), (("inputs", "en"), ("targets", "de")))
    assert len(source.read([1, 2])) == 2
    with pytest.raises(DataError, match=r"example 7 of some/data, train: the feature 'de' is not UTF-8"):
        source.read([1, 7])


def test_nothing_is_written_into_a_read_only_folder(tmp_path, small_number_words):
    os.chmod(tmp_path, 0o555)
    try:
        with pytest.raises(DataError, match=r"the folder is read-only; set "):
            load_source(SourceConfig(folder=str(tmp_path)), "test")
        assert not list(tmp_path.iterdir())
    finally:
        os.chmod(tmp_path, 0o755)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "number_words/it"}, r"no data set 'number_words/it': did you mean"),
        ({"test": ("tests",)}, r"no split 'tests': did you mean 'test'\?"),
        ({"features": (("inputs", "input"),)}, r"no feature 'input': did you mean 'inputs'\?"),
        ({"features": (("inputs", "inputs/en"),)}, r"no feature 'inputs/en'"),
        (
            {"features": (("inputs", "number"),)},
            r"'number' of .*, which cannot be inputs: that must be a text or",
        ),
    ],
)
def test_bad_tfds_names(tmp_path, small_number_words, changes, message):
    with pytest.raises(DataError, match=message):
        load_source(SourceConfig(folder=str(tmp_path), **changes), "test")


def test_an_unprepared_data_set_tells_how_to_prepare_it(tmp_path):
    config = SourceConfig(name="wmt14_translate/de-en", folder=str(tmp_path))
    with pytest.raises(DataError) as error:
        load_source(config, "train")
    message = str(error.value)
    assert "wmt14_translate/de-en" in message and str(tmp_path) in message
    assert 'pip install -e ".[tfds]"' in message and 'file_format="array_record"' in message
    assert "\n" not in message


@pytest.mark.parametrize("prefix", ["", "nested/"])
def test_catalogue_features_without_their_code(tmp_path, prefix):
    mock = mock_translate(("en", "de"), PAIRS)
    mock(config="mock", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    # A name without code is what a data set prepared elsewhere looks like.
    os.rename(tmp_path / "mock_translate", tmp_path / "other_translate")
    config = SourceConfig(
        name="other_translate/mock",
        folder=str(tmp_path),
        train=("train[:3]",),
        features=(("inputs", f"{prefix}en"), ("targets", f"{prefix}de")),
    )
    assert len(load_source(config, "train")) == 3
    assert sorted(examples(load_source(config, "test"))) == sorted(PAIRS)
