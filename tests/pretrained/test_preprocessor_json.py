"""``preprocessor_config.json`` of image models: read where it says something else than here, and written."""

import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.test_fixtures import STORED
from transformer_jax.config import ConfigError
from transformer_jax.models.front_ends.patches import scaled_pixels
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh

FILE = "preprocessor_config.json"
# As it was written before there was do_rescale.
PUBLISHED = dict(do_normalize=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=224)


def folder_with(content, tmp_path, name="vit"):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(do_rescale=True, rescale_factor=0.00392156862745098, image_processor_type="ViTImageProcessor"),
        dict(rescale_factor=0.003921568859368563),  # 1 / 255 in float32
        dict(image_mean=0.5, image_std=None, do_rescale=None),
    ],
)
def test_an_image_model_whose_pixels_become_what_they_do_here_is_read(changes, tmp_path):
    found, plain = (
        from_pretrained(folder_with(PUBLISHED | changes, tmp_path)),
        from_pretrained(STORED / "vit"),
    )
    assert found.config == plain.config
    jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(image_mean=[0.5, 0.5]), r"image_mean=\[0.5, 0.5\]:"),
        (dict(image_mean="0.5", image_std=[1, 1, 0]), r"image_mean='0.5', image_std=\[1, 1, 0\]:"),
        (dict(image_mean=math.nan, image_std=math.inf), r"image_mean=nan, image_std=inf:"),
        (dict(image_std=[]), r"image_std=\[\]:"),
        (dict(rescale_factor=1 / 127.5), r"rescale_factor=0.00784\d+:"),
        (dict(rescale_factor="1/255"), r"rescale_factor='1/255':"),
        (dict(do_rescale=False), r"do_rescale=False:"),
        (dict(do_normalize=False), r"do_normalize=False:"),
    ],
)
def test_an_image_model_whose_pixels_become_nothing_known_is_refused(changes, named, tmp_path):
    with pytest.raises(ConfigError, match=rf"{FILE} has {named} this is not supported\. .*image_std above 0"):
        from_pretrained(folder_with(PUBLISHED | changes, tmp_path))


IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.everything), 8])
@pytest.mark.parametrize(
    "changes", [IMAGENET, dict(image_mean=[0.5, 0.5, 0.4]), dict(image_mean=0, image_std=1)]
)
def test_another_mean_and_deviation_of_pixels_change_nothing_that_is_told(
    changes, devices, tmp_path, rng, capsys
):
    """Of pixels that were made what the checkpoint wants, by the model as it is stored."""
    two = min(2, devices)
    mesh = make_mesh(MeshConfig(data=two, fsdp=two, tensor=two), jax.devices()[:devices])
    plain = from_pretrained(STORED / "vit")
    ours = from_pretrained(folder_with(PUBLISHED | changes, tmp_path), mesh=mesh)
    assert ours.config == plain.config
    assert "are merged into the embedding of patches" in capsys.readouterr().err
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    mean, std = (np.array(changes.get(key, 0.5)) for key in ("image_mean", "image_std"))
    theirs = ((images / 255 - mean) / std).astype(np.float32)
    wanted = jax.jit(plain.model.apply)({"params": plain.params}, images=jnp.asarray(theirs))
    found = jax.jit(ours.model.apply)({"params": ours.params}, images=scaled_pixels(jnp.asarray(images)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    others = from_pretrained(STORED / "vit", mesh=mesh).params
    assert jax.tree.map(lambda leaf: leaf.sharding, ours.params) == jax.tree.map(
        lambda leaf: leaf.sharding, others
    )
    # What is written makes -1 to 1 of pixels.
    save_pretrained(tmp_path / "again", ours)
    again = from_pretrained(tmp_path / "again")
    assert "embedding of patches" not in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.device_get(ours.params))


@pytest.mark.parametrize(
    ("changes", "advice", "followed", "pixels"),
    [
        (
            dict(do_normalize=False),
            r"write do_normalize: true, image_mean: \[0.0, 0.0, 0.0\], image_std: \[1.0, 1.0, 1.0\]$",
            dict(do_normalize=True, image_mean=[0.0] * 3, image_std=[1.0] * 3),
            lambda images: images / 255,
        ),
        (
            dict(do_rescale=False, image_mean=[100.0] * 3, image_std=[60.0] * 3),
            r"write do_rescale: true, leave rescale_factor out, and divide image_mean and image_std by 255$",
            dict(do_rescale=True, image_mean=[100 / 255] * 3, image_std=[60 / 255] * 3),
            lambda images: (images - 100) / 60,
        ),
        (
            dict(rescale_factor=1 / 127.5, image_mean=1.0, image_std=2.0),
            r"and divide image_mean and image_std by 2$",
            dict(rescale_factor=None, image_mean=0.5, image_std=1.0),
            lambda images: (images / 127.5 - 1) / 2,
        ),
        (
            dict(do_rescale=False, do_normalize=False),
            r"image_mean: \[0.0, .*, image_std: \[1.0, .*, and divide image_mean and image_std by 255$",
            dict(do_rescale=True, do_normalize=True, image_mean=0.0, image_std=1 / 255),
            lambda images: images / 1,
        ),
    ],
)
def test_the_advice_gives_the_pixels_of_the_file_that_is_refused(
    changes, advice, followed, pixels, tmp_path, rng
):
    folder = folder_with(PUBLISHED | changes, tmp_path)
    with pytest.raises(ConfigError, match=advice):
        from_pretrained(folder)
    (folder / FILE).write_text(json.dumps(PUBLISHED | changes | followed))
    ours, plain = from_pretrained(folder), from_pretrained(STORED / "vit")
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    theirs = jnp.asarray(pixels(images.astype(np.float64)), jnp.float32)
    wanted = jax.jit(plain.model.apply)({"params": plain.params}, images=theirs)
    found = jax.jit(ours.model.apply)({"params": ours.params}, images=scaled_pixels(jnp.asarray(images)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_advice_for_a_size_keeps_mean_and_deviation(tmp_path):
    wanted = from_pretrained(folder_with(PUBLISHED | IMAGENET, tmp_path)).params
    content = PUBLISHED | IMAGENET | dict(size={"longest_edge": 9})
    (tmp_path / "vit" / FILE).write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"for images of its own size only, write do_resize: false in this file$"
    ):
        from_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / FILE).write_text(json.dumps(content | dict(do_resize=False)))
    found = from_pretrained(tmp_path / "vit")
    assert found.sizing is None
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted)


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "BitImageProcessorFast", "ViTHybridImageProcessor"])
def test_what_another_processor_leaves_open_is_refused(kind, tmp_path):
    sizes = dict(size={"height": 32, "width": 32}, resample=2, do_center_crop=False)
    content = sizes | IMAGENET | dict(image_processor_type=kind)
    wanted = from_pretrained(folder_with(IMAGENET, tmp_path)).params
    for missing in (["resample"], ["do_center_crop", "image_std"], ["size", *list(sizes)[1:], *IMAGENET]):
        (tmp_path / "vit" / FILE).write_text(json.dumps(content | dict.fromkeys(missing)))
        with pytest.raises(
            ConfigError, match=rf"{FILE} lacks {', '.join(missing)}; the defaults of a {kind}"
        ):
            from_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / FILE).write_text(json.dumps(content | dict(do_center_crop=True)))
    with pytest.raises(ConfigError, match=f"{FILE} lacks crop_size; "):
        from_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / FILE).write_text(json.dumps(dict(do_resize=False, feature_extractor_type=kind)))
    with pytest.raises(ConfigError, match=rf"{FILE} lacks image_mean, image_std; the defaults of a {kind}"):
        from_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / FILE).write_text(json.dumps(content))
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path / "vit").params, wanted)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_refused(content, tmp_path):
    with pytest.raises(ConfigError, match=FILE):
        from_pretrained(folder_with(content, tmp_path))


def test_a_model_of_texts_has_none(tmp_path):
    from_pretrained(folder_with(dict(do_normalize=False), tmp_path, "gpt2"))
    save_pretrained(tmp_path / "new", from_pretrained(STORED / "gpt2"))
    assert not (tmp_path / "new" / FILE).exists()


def test_what_is_written_makes_of_pixels_what_is_made_of_them_here(tmp_path):
    save_pretrained(tmp_path, from_pretrained(STORED / "vit"))
    written = json.loads((tmp_path / FILE).read_text())
    assert written["image_processor_type"] == "ViTImageProcessor"
    assert written["do_resize"] and written["size"] == {"height": 32, "width": 32}
    assert written["do_rescale"] and math.isclose(written["rescale_factor"], 1 / 255)
    assert written["do_normalize"] and len(written["image_mean"]) == len(written["image_std"]) == 3
    images = np.arange(0, 256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    theirs = (images * written["rescale_factor"] - written["image_mean"]) / written["image_std"]
    # Numbers up to 1, in float32.
    np.testing.assert_allclose(scaled_pixels(jnp.asarray(images)), theirs, rtol=0, atol=1e-6)
    assert from_pretrained(tmp_path).config == from_pretrained(STORED / "vit").config
