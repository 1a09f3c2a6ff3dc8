"""Images of any size become what transformers' own processors make of them, and are classified the same."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from tests.inference.test_images import DEIT, PLAIN, SHORTEST, photo
from tests.parity.test_fixtures import STORED
from transformer_jax.pretrained.reading import from_pretrained
from transformer_jax.pretrained.saving import save_pretrained

pytestmark = pytest.mark.live

SIZES = [(45, 70), (91, 50), (32, 32), (20, 24)]
OF_IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
CONTENTS = {
    "vit": PLAIN | dict(image_processor_type="ViTImageProcessor"),
    "bicubic": PLAIN | dict(resample=3, image_processor_type="ViTImageProcessor"),
    "deit": DEIT,
    "shortest": SHORTEST,
    "dino": PLAIN | OF_IMAGENET | dict(image_processor_type="ViTImageProcessor"),
    "deit_of_imagenet": DEIT | OF_IMAGENET,
}


def probabilities(logits):
    exponentials = np.exp(logits - logits.max())
    return (exponentials / exponentials.sum()).tolist()


@pytest.mark.parametrize("height_and_width", SIZES)
@pytest.mark.parametrize("name", CONTENTS)
def test_images_are_those_of_the_processor_and_told_the_same(
    name, height_and_width, tmp_path, transformers, load, run
):
    folder = pathlib.Path(shutil.copytree(STORED / "vit", tmp_path / "vit"))
    pixels = dict(do_rescale=True, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | CONTENTS[name]))
    ours = from_pretrained(folder)
    save_pretrained(tmp_path / "written", ours)
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(photo(*height_and_width)).save(path)
    for where in (folder, tmp_path / "written"):
        processor = transformers.AutoImageProcessor.from_pretrained(where, use_fast=False)
        with PIL.Image.open(path) as picture:
            arguments = dict(processor(picture.convert("RGB"), return_tensors="np"))
        written = json.loads((where / "preprocessor_config.json").read_text())
        mine = ours.sizing(photo(*height_and_width)) / 255 - np.array(written["image_mean"])
        theirs = arguments["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(mine / np.array(written["image_std"]), theirs, rtol=0, atol=2e-6)
        logits = run(load(where, "ViTForImageClassification"), arguments)["logits"][0]
        wanted = {f"LABEL_{i}": value for i, value in enumerate(probabilities(logits))}
        assert dict(ours.classify(path)) == pytest.approx(wanted, abs=1e-5)
