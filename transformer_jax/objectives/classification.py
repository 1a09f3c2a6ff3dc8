"""Classification of texts, pairs of texts (Devlin et al. 2019) or images (Dosovitskiy et al. 2021)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from transformer_jax.config import ConfigError
from transformer_jax.objectives.base import Apply, ModelFacts, Rngs, Sums
from transformer_jax.objectives.calls import run_model, side_arrays
from transformer_jax.objectives.cutting import check_room
from transformer_jax.objectives.image_crops import centre_box, random_box, resized
from transformer_jax.objectives.labels import LabelledObjective, label_id
from transformer_jax.types import CUT, Batch, Drawing, Encoder, Example, PyTree, TokenExample


@dataclasses.dataclass(frozen=True)
class Classification(LabelledObjective):
    """Predict the class of an example.

    The tokens of a text are "[CLS] a [SEP]", those of a pair of texts "[CLS] a [SEP] b [SEP]" with token
    types 0 and 1 (BERT, section 4); the template of the tokenizer may have other special tokens. Images
    (height, width, channels) are uint8 until the loss scales 0 to 255 to -1 to 1. They are resized here and
    not in the source, because a training image is cropped anew at every visit from all of its pixels.

    Attributes:
      cut_long: cut texts that are longer than ``max_length`` at the end, of two texts always the longer one,
        as in the released BERT. If False, training leaves such examples out. Both are counted.
      label_smoothing: see ``losses.smoothed_cross_entropy``.
      image_size: side in pixels of the square that images of any size are resized to. Evaluation uses the
        middle of an image (``image_crops.centre_box``), training a random part (``random_box``). 0 keeps the
        size of images, which must all be the same.
      least_area: the smallest area of such a random part, as a fraction of the image's area.
      crop_padding: number of black pixels that are added on each side of a training image before a part of
        the original size is cut out at random; 4 in He et al. 2016, section 4.2.
      flip: mirror a training image left to right with probability one half.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1", "matthews")
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "matthews")
    FEATURES: ClassVar[tuple[str, ...]] = ("labels",)
    OPTIONAL_FEATURES: ClassVar[tuple[str, ...]] = ("inputs", "pair", "images")  # a text or two, or an image
    HEADS: ClassVar[tuple[str, ...]] = ("classes",)
    PARTS: ClassVar[tuple[str, ...]] = ("encoder",)

    name: Literal["classification"] = "classification"
    cut_long: bool = False
    label_smoothing: float = 0.0
    image_size: int = 0
    least_area: float = 0.08
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")
        for name in ("image_size", "crop_padding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area={self.least_area} must be above 0 and at most 1")
        if not self.image_size and self.least_area != type(self).least_area:
            raise ValueError(
                f"least_area={self.least_area} is for images that are brought to one size: set image_size"
            )
        if self.image_size and self.crop_padding:
            raise ValueError(
                f"crop_padding={self.crop_padding} is for images that are not resized: set it to 0, or set "
                f"image_size={self.image_size} to 0"
            )

    @property
    def may_cut(self) -> bool:
        """Whether texts that are too long are cut and scored: ``cut_long``."""
        return self.cut_long

    @property
    def sizing(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """``as_evaluated`` if ``image_size`` is set, else None."""
        return self.as_evaluated if self.image_size else None

    def unmeasured(self, model: ModelFacts) -> Mapping[str, str]:
        """Returns ``f1`` and ``matthews`` unless the model has two classes."""
        if model.num_labels == 2:
            return {}
        return dict.fromkeys(("f1", "matthews"), "it needs config.model.num_labels=2")

    def check(self, model: ModelFacts) -> None:
        """Raises ConfigError if names, settings or image size do not fit the model.

        Settings of images have no effect on texts, and settings of texts none on images; both are refused.
        """
        super().check(model)
        defaults = type(self)()
        of_images = ("image_size", "least_area", "crop_padding", "flip")
        for name in of_images if model.reads_text else ("cut_long",):
            if getattr(self, name) != getattr(defaults, name):
                read = "texts" if model.reads_text else model.feature
                raise ConfigError(
                    f"config.objective.{name}={getattr(self, name)!r} has no effect on {read}: leave it at "
                    f"{getattr(defaults, name)!r}"
                )
        side = self.image_size
        if side and model.shape[:2] != (side, side):
            raise ConfigError(
                f"config.objective.image_size={side} makes images of {side} x {side} pixels, but the model "
                f"reads images of shape {model.shape} (height, width, channels)"
            )

    def encode(self, example: Example, tokenizer: Encoder) -> TokenExample:
        """Returns the image unchanged, or the text with its special tokens and types; and the label's id.

        Raises:
          ValueError: the label is unknown, or the example has neither text nor image.
        """
        labels = np.array(label_id(example["labels"], self.labels), np.int32)
        if "images" in example:
            return {"images": np.asarray(example["images"]), "labels": labels}
        if "inputs" not in example:
            raise ValueError(
                f"an example to classify needs the feature 'inputs' or 'images', but has {', '.join(example)}"
            )
        return encode_texts(tokenizer, example["inputs"], example.get("pair")) | {"labels": labels}

    def pieces(self, tokens: TokenExample, context: Drawing) -> list[TokenExample]:
        """Returns the example with its text cut, or its image resized, cropped and flipped, as configured."""
        if "images" in tokens:
            image = self._sized(tokens["images"], context)
            changed = self._augment(image, context.rng) if context.train else image
            return [{**tokens, "images": changed}]
        ids, types = tokens["inputs"], tokens["inputs_types"]
        if len(ids) <= context.max_length or not self.cut_long:
            return [tokens]
        is_pair = bool(types.any())
        template = context.tokenizer.template(2 if is_pair else 1)
        special = sum(map(len, template))
        check_room(context.max_length, special + len(template) - 1)
        first = int((types == 0).sum())
        texts = [ids[len(template[0]) : first - len(template[1])]]
        if is_pair:
            texts.append(ids[first : len(ids) - len(template[-1])])
        lengths = _cut_lengths([len(text) for text in texts], context.max_length - special)
        texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
        joined = _joined(texts, template)
        return [{**tokens, **joined, CUT: np.array(len(ids) - len(joined["inputs"]))}]

    def as_evaluated(
        self, image: UInt8[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "new_height new_width channels"]:
        """Returns an image as evaluation uses it: resized, unless ``image_size`` is 0."""
        if not self.image_size:
            return image
        height, width = image.shape[:2]
        return resized(image, centre_box(height, width), self.image_size)

    def _sized(self, image: np.ndarray, context: Drawing) -> np.ndarray:
        if not context.train:
            return self.as_evaluated(image)
        if not self.image_size:
            return image
        height, width = image.shape[:2]
        return resized(image, random_box(height, width, self.least_area, context.rng), self.image_size)

    def _augment(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.crop_padding:
            height, width = image.shape[:2]
            border = self.crop_padding
            top, left = rng.integers(0, 2 * border + 1, 2)
            # np.pad would take longer than copying such a small image.
            padded = np.zeros((height + 2 * border, width + 2 * border, image.shape[-1]), image.dtype)
            padded[border : border + height, border : border + width] = image
            image = padded[top : top + height, left : left + width]
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)

    def loss(
        self, apply: Apply, params: PyTree, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Sums]:
        """Returns the cross-entropy over examples, summed, in nats; see ``class_losses``.

        Returns:
          The summed loss, and the sums ``loss``, ``correct`` and ``tokens``, which is the number of examples.
          With two classes there are three more: the examples of the second class, ``positive``, those that
          are predicted to be of it, ``found_positive``, and those of both, ``true_positive``.
        """
        if "images" in batch:
            arguments = {"images": jnp.asarray(batch["images"])}
        else:
            arguments = side_arrays(batch, "inputs")
        logits = run_model(apply, params, arguments, rngs, train=train)
        labels = jnp.asarray(batch["labels"])
        weights = (labels >= 0).astype(jnp.float32)
        loss, is_correct = self.class_losses(
            logits[:, None], labels[:, None], weights[:, None], self.label_smoothing
        )
        is_correct = is_correct[:, 0]
        sums = {"loss": loss, "correct": jnp.sum(is_correct), "tokens": jnp.sum(weights)}
        if logits.shape[-1] == 2:
            is_positive = (labels == 1).astype(jnp.float32)
            true = jnp.sum(is_correct * is_positive)
            mistaken = jnp.sum((weights - is_correct) * (1 - is_positive))
            sums |= {
                "positive": jnp.sum(is_positive),
                "found_positive": true + mistaken,
                "true_positive": true,
            }
        return loss, sums

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns ``loss`` and ``accuracy`` per example; of two classes also GLUE's ``f1`` and ``matthews``.

        ``f1`` is of the second class. ``matthews`` is the correlation of labels and predictions. Both are 0
        if they are not defined.
        """
        found = {"loss": sums["loss"] / sums["tokens"], "accuracy": sums["correct"] / sums["tokens"]}
        if "positive" not in sums:
            return found
        count, positive, told, true = (
            sums[name] for name in ("tokens", "positive", "found_positive", "true_positive")
        )
        spread = math.sqrt(positive * (count - positive) * told * (count - told))
        return found | {
            "f1": 2 * true / (positive + told) if positive + told else 0.0,
            "matthews": (count * true - positive * told) / spread if spread else 0.0,
        }


def encode_texts(tokenizer: Encoder, text: str, pair: str | None = None) -> dict[str, np.ndarray]:
    """Returns an encoder's ``inputs`` and ``inputs_types`` for one text or a pair: int32, of any length."""
    texts = [tokenizer.encode(part) for part in (text, pair) if part is not None]
    return _joined(texts, tokenizer.template(len(texts)))


def _joined(texts: list[np.ndarray], template: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Returns "[CLS] a [SEP]" or "[CLS] a [SEP] b [SEP]" with its types."""
    before, *after = template
    parts, types = [before], [0] * len(before)
    for number, (text, end) in enumerate(zip(texts, after, strict=True)):
        parts += [text, end]
        types += [number] * (len(text) + len(end))
    return {"inputs": np.concatenate(parts).astype(np.int32), "inputs_types": np.array(types, np.int32)}


def _cut_lengths(lengths: list[int], room: int) -> list[int]:
    """Returns the lengths after tokens are cut one by one from the longer text, or the second if equal."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    a, b = lengths
    if a + b <= room:
        return [a, b]
    half = room // 2
    if b <= half:
        return [room - b, b]
    if a <= room - half:
        return [a, room - a]
    return [room - half, half]
