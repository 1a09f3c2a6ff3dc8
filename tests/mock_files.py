"""Files of the kinds that experiments read, with a few made-up examples in the place of a corpus."""

import dataclasses
import pathlib
import struct

import numpy as np

from transformer_jax.data import SPLITS, SourceConfig
from transformer_jax.data.text_files import split_name

PAIRS = [
    (f"A small dog number {i} sees the {i % 7} cats.", f"Ein kleiner Hund Nummer {i} sieht {i % 7} Katzen.")
    for i in range(80)
]
CLASSES = {"bert_sst2": ("0", "1"), "bert_trec": ("NUM:count", "HUM:ind", "LOC:city")}
SIDE = 28  # pixels


def write_files(source: SourceConfig, folder: pathlib.Path) -> SourceConfig:
    """Writes what a source of files reads; gives the source with the folder and the names of these files."""
    changes: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        names = []
        for place, name in enumerate(getattr(source, split)):
            path = folder / split_name(name)[0].removesuffix(".gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, source, place)
            names.append(str(path.relative_to(folder)))
        changes[split] = tuple(names)
    return dataclasses.replace(source, folder=str(folder), **changes)


def _write(path: pathlib.Path, source: SourceConfig, place: int) -> None:
    if source.kind == "idx":
        _write_idx(path, source.features[place][0])
    elif source.kind == "document":
        path.write_text("\n".join(english for english, _ in PAIRS))
    elif source.kind == "pattern":
        labels = CLASSES["bert_trec" if ":" in source.pattern else "bert_sst2"]
        lines = [f"{labels[i % len(labels)]} {english}\n" for i, (english, _) in enumerate(PAIRS)]
        path.write_text("".join(lines), encoding=source.encoding)
    else:
        path.write_text("".join(pair[place] + "\n" for pair in PAIRS))


def _write_idx(path: pathlib.Path, feature: str) -> None:
    rng = np.random.default_rng(0)
    if feature == "labels":
        path.write_bytes(struct.pack(">II", 0x0801, 80) + bytes(i % 10 for i in range(80)))
    else:
        pixels = rng.integers(0, 256, (80, SIDE, SIDE), dtype=np.uint8)
        path.write_bytes(struct.pack(">IIII", 0x0803, 80, SIDE, SIDE) + pixels.tobytes())
