"""Turns examples into batches: sources, tokenizers, and the Grain pipeline with its replayable state.

It may import only ``types``, ``config`` and ``files``; objectives are passed to it as transforms.
"""

from transformer_jax.data.evaluation import (
    batches_of_pieces,
    count_cut,
    evaluation_batches,
    evaluation_pieces,
)
from transformer_jax.data.examples import DataError, MemorySource, Source, fingerprint
from transformer_jax.data.image_files import read_image
from transformer_jax.data.packing import nearest_sizes, rows_per_batch
from transformer_jax.data.padding import batches_by_length, pad_batch
from transformer_jax.data.pipeline import (
    DataConfig,
    TrainingIterator,
    training_iterator,
)
from transformer_jax.data.sources import (
    SPLITS,
    SQUAD_FEATURES,
    SourceConfig,
    data_folder,
    load_source,
    load_sources,
)
from transformer_jax.data.text_files import DATA_VARIABLE
from transformer_jax.data.token_examples import Transform
from transformer_jax.data.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    train_tokenizer,
    training_texts,
)

__all__ = [
    "DATA_VARIABLE",
    "SPLITS",
    "DataConfig",
    "DataError",
    "MemorySource",
    "Source",
    "SQUAD_FEATURES",
    "SourceConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingIterator",
    "Transform",
    "batches_by_length",
    "batches_of_pieces",
    "count_cut",
    "data_folder",
    "evaluation_batches",
    "evaluation_pieces",
    "fingerprint",
    "load_source",
    "load_sources",
    "read_image",
    "nearest_sizes",
    "pad_batch",
    "rows_per_batch",
    "train_tokenizer",
    "training_iterator",
    "training_texts",
]
