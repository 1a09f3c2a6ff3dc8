"""Writes ``minilm.npz``: what PyTorch's all-MiniLM-L6-v2 makes of ``sentences.SENTENCES``.

    python -m tests.parity.make_minilm tests/parity/minilm.npz

Needs torch, transformers and the packaged checkpoint (`make parity` has an environment with them).
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from tests.parity import minilm
from tests.parity.sentences import SENTENCES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes what PyTorch's all-MiniLM-L6-v2 makes of sentences.")
    parser.add_argument("output", type=pathlib.Path)
    options = parser.parse_args(arguments)
    embeddings = embed(SENTENCES)
    np.savez_compressed(options.output, texts=np.array(SENTENCES), embeddings=embeddings)
    print(f"{options.output}: {len(SENTENCES)} texts, {embeddings.shape[1]} numbers each")


def embed(texts: Sequence[str]) -> np.ndarray:
    """Embeddings (N, D), float32, of length 1: the mean of all tokens' vectors, as the checkpoint says.

    One text at a time, so that no padding is in them.
    """
    folder = minilm.folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            vectors = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(vectors.mean(0), dim=0).numpy())
    return np.stack(rows)


if __name__ == "__main__":
    main()
