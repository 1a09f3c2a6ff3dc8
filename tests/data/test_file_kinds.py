"""Files of every kind and their slices, written here byte by byte."""

import gzip
import json
import struct

import numpy as np
import pytest

from transformer_jax.config import ConfigError, read_section
from transformer_jax.data import DataError, SourceConfig, load_source, load_sources
from transformer_jax.data.examples import JoinedSource, MemorySource
from transformer_jax.data.text_files import slice_of
from transformer_jax.types import FEATURES, KINDS, Kind


def config(folder, kind, train, features, **more):
    names = (train,) if isinstance(train, str) else train
    return SourceConfig(
        kind=kind, folder=str(folder), train=names, validation=(), test=(), features=features, **more
    )


def read_all(settings):
    source = load_source(settings, "train")
    return source.read(range(len(source)))


# Slices


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", range(11)),
        ("a.txt[:]", range(11)),
        ("a.txt[:90%]", range(10)),  # 9.9 is nearer 10
        ("a.txt[90%:]", range(10, 11)),
        ("a.txt[:20%]", range(2)),  # 2.2
        ("a.txt[5:]", range(5, 11)),
        ("a.txt[-3:]", range(8, 11)),
        ("a.txt[:-3]", range(8)),
        ("a.txt[-20%:]", range(9, 11)),
        ("a.txt[2:4]", range(2, 4)),
        ("odd[1].txt", range(11)),  # no slice: a name
    ],
)
def test_slices_are_those_of_tfds(name, expected):
    assert list(range(11)[slice_of(name, 11)]) == list(expected)


def test_both_sides_of_a_percentage_share_all():
    for count in range(1, 60):
        for percent in range(101):
            parts = [range(count)[slice_of(f"a[{one}]", count)] for one in (f":{percent}%", f"{percent}%:")]
            assert [i for part in parts for i in part] == list(range(count))


@pytest.mark.parametrize("name", ["a.txt[12:]", "a.txt[-12:]", "a.txt[:101%]"])
def test_a_slice_beyond_the_end(name):
    with pytest.raises(DataError, match=r"the slice of a\.txt\[.*\] goes beyond its 11"):
        slice_of(name, 11)


def test_an_empty_slice_is_an_empty_split(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"train split is empty.*a\.txt\[1:\]"):
        read_all(config(tmp_path, "text", "a.txt[1:]", (("inputs", ""),)))


# Text


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_text_file_a_feature_and_one_slice_of_all(tmp_path, suffix):
    columns = {"pair": ["p0", "p1", "p2", "p3"], "labels": ["no", "yes", "no", "yes"], "inputs": list("abcd")}
    for name, lines in columns.items():
        content = "".join(line + "\n" for line in lines).encode()
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    names = tuple(f"{name}{suffix}[-2:]" for name in columns)
    found = read_all(config(tmp_path, "text", names, tuple((name, "") for name in columns)))
    assert found == [
        {"pair": "p2", "labels": "no", "inputs": "c"},
        {"pair": "p3", "labels": "yes", "inputs": "d"},
    ]


def test_documents_are_whole_texts_and_slices_of_characters(tmp_path):
    texts = {"a.txt": "Größe\r\n\n zwei\n", "b.txt": "日本語のテキスト"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    features = (("inputs", ""),)
    assert read_all(config(tmp_path, "document", tuple(texts), features)) == [
        {"inputs": text} for text in texts.values()
    ]
    assert read_all(config(tmp_path, "document", ("b.txt[:25%]", "b.txt[2:]"), features)) == [
        {"inputs": "日本"},
        {"inputs": "語のテキスト"},
    ]


TREC = r"(?P<labels>\S+?):\S+ (?P<inputs>.*)"


def test_a_pattern_takes_lines_apart(tmp_path):
    lines = ["DESC:manner How did serfdom end ?", "NUM:count:odd How many\u2028lines ?"]
    (tmp_path / "a.label").write_text("\r\n".join(lines) + "\r\n")
    settings = config(
        tmp_path, "pattern", "a.label", (("inputs", "inputs"), ("labels", "labels")), pattern=TREC
    )
    assert read_all(settings) == [
        {"inputs": "How did serfdom end ?", "labels": "DESC"},
        {"inputs": "How many\u2028lines ?", "labels": "NUM"},
    ]


def test_a_line_that_does_not_match_is_named(tmp_path):
    (tmp_path / "a.label").write_text("DESC:manner How ?\nno label here\nALSO wrong\n")
    settings = config(tmp_path, "pattern", "a.label", (("inputs", "inputs"),), pattern=TREC)
    with pytest.raises(DataError, match=r"a\.label, line 2: does not match .*pattern=.*'no label here'"):
        read_all(settings)
    optional = config(tmp_path, "pattern", "a.label[2:]", (("labels", "x"),), pattern=r"(?P<x>x)?.*")
    with pytest.raises(DataError, match=r"line 3: does not match .* whose group 'x' matched nothing"):
        read_all(optional)


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_slices_of_lines_keep_their_numbers_in_errors(tmp_path, kind):
    lines = [json.dumps({"0": text}) if kind == "jsonl" else text for text in "abcd"]
    (tmp_path / "a").write_text("\n".join(lines))
    assert read_all(config(tmp_path, kind, "a[1:3]", (("inputs", "0"),))) == [
        {"inputs": "b"},
        {"inputs": "c"},
    ]
    (tmp_path / "a").write_text('{"0": "a"}\n{"0": "b"}\nwrong\n')
    with pytest.raises(DataError, match="line 3: broken JSON"):
        read_all(config(tmp_path, "jsonl", "a[-2:]", (("inputs", "0"),)))


def test_jsonl_values_of_every_type(tmp_path):
    records = [
        {"words": ["A", "dog"], "tags": [3, 0], "qa": {"text": ["a", "b"], "start": [0, 7]}, "label": 1},
        {"words": ["Nothing"], "tags": ["O"], "qa": {"text": [], "start": []}, "label": "yes"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def read(*features):
        return read_all(config(tmp_path, "jsonl", "a.jsonl", features))

    assert read(("inputs", "words"), ("labels", "tags")) == [
        {"inputs": ["A", "dog"], "labels": [3, 0]},
        {"inputs": ["Nothing"], "labels": ["O"]},
    ]
    assert read(("answers", "qa/text"), ("answer_starts", "qa/start"), ("labels", "label")) == [
        {"answers": ["a", "b"], "answer_starts": [0, 7], "labels": 1},
        {"answers": [], "answer_starts": [], "labels": "yes"},
    ]


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        ("targets", ["a"], "'x' must be a text to be targets, not \\['a'\\]"),
        ("labels", True, "must be an integer or a text or a list of integers or a list of texts"),
        ("labels", [1, "a"], "to be labels, not \\[1, 'a'\\]"),
        ("inputs", 3, "must be a text or a list of texts to be inputs, not 3"),
        ("answer_starts", ["1"], "must be a list of integers"),
        ("answer_starts", 1.5, "not 1.5"),
        ("context", None, "must be a text to be context, not None"),
        ("answers", ["good", "\ud800"], "half of a surrogate pair"),
    ],
)
def test_jsonl_values_that_a_feature_cannot_be(tmp_path, feature, value, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": value}) + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1: .*{message}"):
        read_all(config(tmp_path, "jsonl", "a.jsonl", ((feature, "x"),)))


@pytest.fixture
def curve(monkeypatch):
    """A kind of value, and a feature of it, that the library does not have: arrays (steps, 2) of floats."""

    def from_plain(value):
        return np.asarray(value, np.float32)

    kind = Kind(
        "a curve", lambda value: np.shape(value)[1:] == (2,), lambda shape: np.zeros(shape), from_plain
    )
    monkeypatch.setitem(KINDS, "curve", kind)
    monkeypatch.setitem(FEATURES, "curves", ("curve",))


def test_a_feature_of_a_kind_from_outside_is_read_from_jsonl(tmp_path, curve):
    (tmp_path / "a.jsonl").write_text('{"x": [[1, 2], [3, 4.5]]}\n')
    (example,) = read_all(config(tmp_path, "jsonl", "a.jsonl", (("curves", "x"),)))
    assert example["curves"].dtype == np.float32
    np.testing.assert_array_equal(example["curves"], [[1, 2], [3, 4.5]])
    for value in ([[1, 2], [3]], [[1, 2, 3]], "a", None):
        (tmp_path / "a.jsonl").write_text(json.dumps({"x": value}) + "\n")
        with pytest.raises(DataError, match=r"a\.jsonl, line 1: 'x' must be a curve to be curves, not"):
            read_all(config(tmp_path, "jsonl", "a.jsonl", (("curves", "x"),)))
    with pytest.raises(ValueError, match="kind 'text' cannot hold 'curves'"):
        config(tmp_path, "text", "a", (("curves", "x"),))


def test_a_nested_key_that_is_not_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"qa": {"texts": []}}\n')
    with pytest.raises(DataError, match=r"line 1: there is no key 'qa/text': did you mean 'texts'\?"):
        read_all(config(tmp_path, "jsonl", "a.jsonl", (("answers", "qa/text"),)))


# Prefixes and several sources


def test_a_prefix_stands_before_inputs_that_are_not_blank(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n \tc\n")
    features = (("inputs", "0"), ("targets", "1"))
    assert read_all(config(tmp_path, "tsv", "a.tsv", features, prefix="to German: ")) == [
        {"inputs": "to German: a", "targets": "b"},
        {"inputs": " ", "targets": "c"},  # as blank as before
    ]


def test_a_prefix_cannot_stand_before_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"inputs": ["a", "b"]}\n')
    with pytest.raises(DataError, match="prefix='x: ' needs inputs that are texts, not lists of words"):
        read_all(config(tmp_path, "jsonl", "a.jsonl", (("inputs", "inputs"),), prefix="x: "))


def test_sources_are_joined_in_order():
    parts = [MemorySource({"inputs": list(texts)}) for texts in ("ab", "c", "", "def")]
    joined = JoinedSource(parts)
    assert len(joined) == 6
    assert [example["inputs"] for example in joined.read([5, 0, 2, 2, 3, 1])] == [
        "f",
        "a",
        "c",
        "c",
        "d",
        "b",
    ]
    assert joined.read([]) == []


def test_several_configs_are_opened_as_one_source(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{name}0\n{name}1\n")
    features = (("inputs", ""),)
    configs = [config(tmp_path, "text", name, features, prefix=f"{name}: ") for name in "ab"]
    found = load_sources(configs, "train")
    assert [example["inputs"] for example in found.read([3, 0, 2])] == ["b: b1", "a: a0", "b: b0"]


# Images


def idx_bytes(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + bytes(array.reshape(-1).tolist())


IMAGES = (("images", ""), ("labels", ""))


@pytest.fixture
def digits(tmp_path, rng):
    images, labels = rng.integers(0, 256, (10, 3, 5)), rng.integers(0, 10, 10)
    (tmp_path / "images").write_bytes(idx_bytes(images))
    (tmp_path / "labels").write_bytes(idx_bytes(labels))
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_bytes(images)))
    return tmp_path, images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_hold_images_and_labels(digits, suffix):
    folder, images, labels = digits
    for part, cut in (("", slice(None)), ("[:70%]", slice(7)), ("[-4:]", slice(6, 10))):
        found = read_all(config(folder, "idx", (f"images{suffix}{part}", f"labels{part}"), IMAGES))
        assert [example["labels"] for example in found] == labels[cut].tolist()
        for example, image in zip(found, images[cut], strict=True):
            assert example["images"].dtype == np.uint8 and example["images"].shape == (3, 5, 1)
            np.testing.assert_array_equal(example["images"][:, :, 0], image)
            assert type(example["labels"]) is int


def test_bad_idx_files(digits):
    folder, images, _ = digits

    def read(content):
        (folder / "images").write_bytes(content)
        read_all(config(folder, "idx", ("images", "labels"), IMAGES))

    whole = idx_bytes(images)
    for content in (whole[:-1], whole + b"\0", whole[:10]):
        with pytest.raises(DataError, match=r"images should have .* bytes after its header, for the shape"):
            read(content)
    with pytest.raises(DataError, match=r"images is not an idx file of 3 dim.* 00 00 08 01, not 00 00 08 03"):
        read((folder / "labels").read_bytes())
    for content in (b"", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(DataError, match="is not an idx file"):
            read(content)
    with pytest.raises(DataError, match=r"images has 9 examples but .*labels has 10"):
        read(idx_bytes(images[:9]))


# Configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (("input", "0"),)}, r"there is no feature 'input': did you mean 'inputs'\?"),
        ({"features": (("inputs", "0"), ("inputs", "1"))}, "names 'inputs' twice"),
        ({"features": ()}, "features is empty"),
        ({"features": (("images", "0"),)}, "kind 'tsv' cannot hold 'images'; it can hold inputs, pair"),
        ({"features": (("labels", "0"),), "prefix": "a"}, "prefix='a' needs the feature inputs"),
        ({"kind": "document"}, "kind 'document' cannot hold 'targets'; it can hold inputs"),
        ({"kind": "idx"}, "kind 'idx' cannot hold 'inputs'; it can hold labels, images"),
        ({"kind": "pattern", "pattern": "("}, "is not a regular expression"),
        ({"kind": "pattern", "pattern": "(?P<o>.)"}, r"has no group '0': it has o"),
        ({"kind": "text", "train": ("a[:1]", "b[:2]")}, "must have the same slice in all its names"),
        ({"kind": "text", "train": ("a", "b", "c")}, "must have 2 name"),
    ],
)
def test_features_that_do_not_suit_a_kind(changes, message):
    values = {"kind": "tsv", "name": "", "folder": "", "train": ("a",), "validation": (), "test": ()}
    values |= {
        "features": (("inputs", "0"), ("targets", "1")),
        "pattern": "",
        "prefix": "",
        "builder_class": "",
        "encoding": "utf-8",
    }
    with pytest.raises(ConfigError, match=message):
        read_section(SourceConfig, values | changes, "data.source")
