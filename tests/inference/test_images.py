"""Images of any size, as arrays and as files: as the folder of their model, or their run, says."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from tests.objectives.toy import ToyTokenizer, draw
from tests.parity.test_fixtures import STORED
from tests.tiny_training import tiny_experiment
from transformer_jax import classify
from transformer_jax.config import ConfigError
from transformer_jax.data import TokenizerConfig, train_tokenizer
from transformer_jax.inference.texts import class_probabilities
from transformer_jax.objectives import Classification
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.runs import loading
from transformer_jax.runs.loading import TrainedRun, load_model

SIDE = 32  # pixels, of the stored model's images
PLAIN = dict(do_resize=True, size=SIDE, resample=2)
CUT = dict(do_center_crop=True, crop_size=SIDE)
DEIT = PLAIN | CUT | dict(size=45, resample=3, feature_extractor_type="DeiTFeatureExtractor")
CLIP = dict(image_processor_type="CLIPImageProcessor", image_mean=0.5, image_std=0.5)
SHORTEST = PLAIN | CUT | CLIP | dict(size={"shortest_edge": 37})


def folder_with(content, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / "vit", tmp_path / "vit"))
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def photo(height=45, width=70, channels=3):
    """Smooth, so that filters differ but do not alias, and no two rows or columns are alike."""
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(rows / (5 + c) + columns / 11) + rows / 4 for c in range(channels)]
    return np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8)


def by_pillow(image, size, resample, box=None):
    """``size`` and ``box`` as Pillow has them: width before height, and left, top, right, bottom."""
    picture = PIL.Image.fromarray(image).resize(size, resample)
    return np.asarray(picture.crop(box) if box else picture)


@pytest.fixture(scope="module")
def exact():
    """The stored model, whose images must have its size."""
    return from_pretrained(STORED / "vit")


def test_probabilities_of_images(rng):
    model = from_pretrained(STORED / "vit")
    images = rng.integers(0, 256, (3, *model.config.front_end.input_shape), dtype=np.uint8)
    pixels = jnp.asarray((images / 127.5 - 1).astype(np.float32))
    logits = np.asarray(jax.jit(model.model.apply)({"params": model.params}, images=pixels), np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True)
    found = class_probabilities(model.config, model.params, None, images, batch_size=2)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert model.classify(images) == model.classify(list(images))
    for one, several in zip(model.classify(images[1]), model.classify(images)[1], strict=True):
        assert one[0] == several[0] and one[1] == pytest.approx(several[1], abs=1e-6)
    for wrong in (images[0].astype(np.float32), images[0, :8], ("an", "image")):
        with pytest.raises(ValueError, match=r"input 2 is .*this model needs images: .*\(32, 32, 3\)"):
            model.classify([images[0], wrong])
    with pytest.raises(ValueError, match=r"^'an image' cannot be read as an image: .*No such file"):
        model.classify([images[0], "an image"])


@pytest.mark.parametrize(
    ("content", "size", "box"),
    [
        (PLAIN, (32, 32), None),
        (PLAIN | dict(size={"height": SIDE, "width": SIDE}, resample=3), (32, 32), None),
        ({}, (32, 32), None),  # what transformers takes for a key that is not there
        (dict(size=224), (32, 32), None),  # of the model that it was tuned from: no other size can be meant
        (DEIT, (45, 45), (6, 6, 38, 38)),
        (dict(image_processor_type="DeiTImageProcessor"), (37, 37), (2, 2, 34, 34)),  # 256 of 224
        (SHORTEST, (57, 37), (12, 2, 44, 34)),
    ],
)
def test_an_array_of_any_size_is_resized_as_the_folder_says(content, size, box, exact, tmp_path):
    model, image = from_pretrained(folder_with(content, tmp_path)), photo()
    resample = content.get("resample", 3 if "DeiT" in str(content) else 2)
    wanted = exact.classify(by_pillow(image, size, resample, box))
    assert model.classify(image) == wanted
    assert dict(model.classify([image, image[:, ::-1]])[0]) == pytest.approx(dict(wanted))
    assert wanted != exact.classify(by_pillow(image, (SIDE, SIDE), 5 - resample))  # or the filter may be any


def test_upright_images_are_resized_by_their_shorter_side_too(exact, tmp_path):
    model, image = from_pretrained(folder_with(SHORTEST, tmp_path)), photo(70, 45)
    assert model.classify(image) == exact.classify(by_pillow(image, (37, 57), 2, (2, 12, 34, 44)))


@pytest.mark.parametrize(
    ("content", "whole"), [(PLAIN, (48, 16)), (DEIT, (round(45 * 48 / 32), round(45 * 16 / 32)))]
)
def test_a_model_for_images_of_another_size_has_them_in_the_same_proportion(content, whole, tmp_path):
    model = from_pretrained(folder_with(content, tmp_path), image_shape=(48, 16, 3))
    assert (model.sizing.whole, model.sizing.middle) == (whole, (48, 16))
    assert model.sizing(photo()).shape == (48, 16, 3)


@pytest.mark.parametrize("content", [None, PLAIN | dict(do_resize=False)])
def test_where_nothing_says_how_an_image_must_have_the_models_size(content, exact, tmp_path):
    model = exact if content is None else from_pretrained(folder_with(content, tmp_path))
    image = photo(SIDE, SIDE)
    assert model.classify(image) == exact.classify(image)
    message = r"input 2 is uint8 of shape \(45, 70, 3\), but .* uint8 of shape \(32, 32, 3\)"
    with pytest.raises(ValueError, match=message):
        model.classify([image, photo()])


@pytest.mark.parametrize("wrong", [photo(channels=4), photo() / 255, photo()[0], photo()[:0], ("a", "b")])
def test_what_is_no_image_is_one_error(wrong, tmp_path):
    model = from_pretrained(folder_with(PLAIN, tmp_path))
    with pytest.raises(ValueError, match=r"input 2 is .*\(height, width, 3\), of any height and width"):
        model.classify([photo(), wrong])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(size=0), r"size=0; "),
        (dict(size="224"), r"size='224'; "),
        (dict(size={"longest_edge": 9}), r"size=\{'longest_edge': 9\}; "),
        (dict(size={"shortest_edge": 9}), r"size=\{'shortest_edge': 9\}; .* needs do_center_crop"),
        (CUT | CLIP | dict(size=224), r"size=224; .*a CLIPImageProcessor"),
        (DEIT | dict(crop_size=46), r"crop_size=46; .*not be larger than size=45"),
        (DEIT | dict(crop_size=[32, 32]), r"crop_size=\[32, 32\]; "),
        (SHORTEST | dict(crop_size={"height": 9, "width": 8}), r"size=.* a square crop_size"),
        (dict(resample="bilinear"), r"resample='bilinear'; "),
        (dict(resample=9), r"resample=9; "),
    ],
)
def test_sizes_that_say_nothing_known_are_refused(changes, named, tmp_path):
    with pytest.raises(ConfigError, match=rf"preprocessor_config.json has {named}"):
        from_pretrained(folder_with(PLAIN | changes, tmp_path))


@pytest.mark.parametrize("content", [PLAIN | dict(resample=3), DEIT, SHORTEST])
def test_what_is_written_says_the_same(content, tmp_path):
    model = from_pretrained(folder_with(content, tmp_path))
    save_pretrained(tmp_path / "again", model)
    assert from_pretrained(tmp_path / "again").sizing == model.sizing


# Files


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_path_is_the_image_in_its_file(kind, tmp_path):
    model = from_pretrained(folder_with(PLAIN, tmp_path))
    path = tmp_path / f"photo.{kind}"
    PIL.Image.fromarray(photo()).save(path)
    wanted = model.classify(np.asarray(PIL.Image.open(path)))
    assert model.classify(path) == model.classify(str(path)) == wanted
    assert dict(model.classify([path, photo(9, 9)])[0]) == pytest.approx(dict(wanted))


def test_files_become_what_the_model_sees(tmp_path):
    model = from_pretrained(folder_with(PLAIN, tmp_path))
    picture = PIL.Image.fromarray(photo())
    gray = PIL.Image.fromarray(photo(channels=1)[..., 0])
    deep = photo(channels=1)[..., 0].astype(np.uint16) * 256 + 99
    turned = picture.getexif()
    turned[0x0112] = 6  # the camera was held on its right side
    files = {
        "gray.png": (gray, {}, photo(channels=1).repeat(3, axis=2)),
        "alpha.png": (picture.convert("RGBA"), {}, photo()),
        "gray16.png": (PIL.Image.fromarray(deep), {}, photo(channels=1).repeat(3, axis=2)),
        "palette.gif": (picture.quantize(9), {}, np.asarray(picture.quantize(9).convert("RGB"))),
        "turned.png": (picture, {"exif": turned}, np.rot90(photo(), -1)),
    }
    for name, (file, options, wanted) in files.items():
        file.save(tmp_path / name, **options)
        assert model.classify(tmp_path / name) == model.classify(np.ascontiguousarray(wanted)), name


def broken_files(folder):
    """Paths that hold no image, and what is said of them."""
    whole = {}
    for kind in ("png", "jpeg", "gif"):
        buffer = io.BytesIO()
        PIL.Image.fromarray(photo()).save(buffer, kind)
        whole[kind] = buffer.getvalue()
    contents = {f"short.{kind}": content[: len(content) // 2] for kind, content in whole.items()}
    contents |= {f"shorter.{kind}": content[:20] for kind, content in whole.items()}
    contents["changed.png"] = whole["png"][:60] + bytes(100) + whole["png"][160:]
    contents |= {"text.png": b"no image", "empty.png": b""}
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "tiff")  # of what range?
    contents["float.tiff"] = buffer.getvalue()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [*contents, "missing.png", "."]


def test_a_file_that_is_missing_or_broken_is_named(tmp_path):
    model = from_pretrained(folder_with(PLAIN, tmp_path))
    for name in broken_files(tmp_path):
        with pytest.raises(ValueError, match="cannot be read as an image") as caught:
            model.classify(str(tmp_path / name))
        assert str(caught.value).startswith(repr(str(tmp_path / name))), name


def run_program(loaded, lines, monkeypatch, **changes):
    origin = dict.fromkeys(("model", "workdir", "from_checkpoint", "average_last"))
    flags = types.SimpleNamespace(**origin, **dict(pairs=False, top=2, batch_size=2) | changes)
    monkeypatch.setattr(classify, "FLAGS", flags)
    content = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=content, isatty=lambda: False))
    monkeypatch.setattr(classify, "prepare_process", lambda: None)
    monkeypatch.setattr(classify, "reported_errors", contextlib.nullcontext)
    monkeypatch.setattr(classify, "load_model", lambda *_: loaded)
    classify.main(["classify"])


@pytest.mark.parametrize("content", [PLAIN, DEIT])
def test_the_program_takes_a_path_a_line(content, tmp_path, monkeypatch, capsys):
    model = from_pretrained(folder_with(content, tmp_path))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for number, path in enumerate(paths):
        PIL.Image.fromarray(photo(30 + 9 * number, 50)).save(path)
    wanted = [
        "\t".join(f"{name}\t{value:.4f}" for name, value in row[:2]) + "\n" for row in model.classify(paths)
    ]
    run_program(model, paths, monkeypatch)
    assert capsys.readouterr().out == "".join(wanted)
    with pytest.raises(ValueError, match=r"^line 2 of standard input: '.*missing.png' cannot be read"):
        run_program(model, [paths[0], tmp_path / "missing.png", paths[1]], monkeypatch)
    assert capsys.readouterr().out == wanted[0]  # what precedes it is told
    with pytest.raises(ConfigError, match="--pairs is for texts"):
        run_program(model, paths, monkeypatch, pairs=True)


@pytest.mark.parametrize("image_size", [SIDE, 0])
def test_a_run_sees_images_as_its_evaluation_does(image_size, exact, corpus, tmp_path, monkeypatch):
    experiment = tiny_experiment(corpus)
    files = {split: ("a", "b") for split in ("train", "validation", "test")}
    source = dataclasses.replace(
        experiment.data.source, kind="idx", features=(("images", ""), ("labels", "")), **files
    )
    objective = Classification(image_size=image_size)
    experiment = dataclasses.replace(
        experiment,
        model=exact.config,
        objective=objective,
        data=dataclasses.replace(experiment.data, source=source),
    )
    run = TrainedRun(experiment, train_tokenizer(TokenizerConfig(kind="byte"), []), exact.params, (1,))
    monkeypatch.setattr(loading, "load_run", lambda *_: run)
    model = load_model(workdir="run")
    image = photo() if image_size else photo(SIDE, SIDE)
    tokens = {"images": image, "labels": np.array(0, np.int32)}
    (piece,) = objective.pieces(tokens, draw(ToyTokenizer(), 1, train=False))
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(image).save(path)
    assert model.classify(path) == model.classify(image) == exact.classify(piece["images"])
    if not image_size:
        with pytest.raises(ValueError, match=r"uint8 of shape \(32, 32, 3\)"):
            model.classify(photo())
