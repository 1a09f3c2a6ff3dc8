"""The one documented data contract: dimension legend, array aliases and the keys of a batch.

Dimension legend, used by every shape in this project:

    B batch (rows)         L query or target length    S key or source length
    D model width          H heads                     K head size
    F feed-forward width   V vocabulary

How data is called on its way:

* A *text example* is what a source yields: ``{"inputs": str, "targets": str}``.
* A *token example* is what an objective's host transform yields: ``{"inputs": array, "targets": array}``,
  one-dimensional int32 arrays that end in ``EOS_ID``.
* A *batch* is what the pipeline yields: the six int32 arrays named in ``BATCH_KEYS``. ``inputs*`` are
  (B, S) and ``targets*`` are (B, L).

In a batch, ``*_segments`` is 0 on padding and counts the examples of a row from 1 (one unless rows
are packed; example ``i`` of a row has segment ``i`` on both sides). ``*_positions`` restart at 0 in every
segment. Targets are not shifted: the model shifts its decoder inputs itself.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
TextExample: TypeAlias = Mapping[str, str]
TokenExample: TypeAlias = Mapping[str, np.ndarray]
Batch: TypeAlias = Mapping[str, Array]

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # their ids are their places here

SIDES = ("inputs", "targets")
BATCH_KEYS = tuple(side + part for side in SIDES for part in ("", "_positions", "_segments"))
