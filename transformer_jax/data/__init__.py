"""Text pairs to batches: sources, tokenizers, and the Grain pipeline with its replayable state."""

from transformer_jax.data.evaluation import evaluation_batches
from transformer_jax.data.packing import rows_per_batch
from transformer_jax.data.pipeline import (
    DataConfig,
    TrainingIterator,
    training_iterator,
)
from transformer_jax.data.sources import (
    DATA_VARIABLE,
    SPLITS,
    DataError,
    MemorySource,
    Source,
    SourceConfig,
    data_folder,
    load_source,
)
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
    "SourceConfig",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingIterator",
    "data_folder",
    "evaluation_batches",
    "load_source",
    "rows_per_batch",
    "train_tokenizer",
    "training_iterator",
    "training_texts",
]
