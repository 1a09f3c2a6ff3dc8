"""Measures the accuracy of a BERT checkpoint fine-tuned to classify texts with PyTorch and transformers.

    python benchmarks/finetune_peer.py --task=sst2 --model=FOLDER
    python benchmarks/finetune_peer.py --task=trec --model=FOLDER --rates=2e-4 --seeds=0,1,2

The project's own fine-tuning experiments are compared with this program: the same checkpoint, data and recipe
in the implementation most people use. It needs torch and transformers (the environment of ``make parity``)
and nothing of this project. ``--model`` is a folder with config.json, model.safetensors and a tokenizer.

The recipe is that of BERT (Devlin et al. 2019, section 4.1 and appendix A.3): AdamW with weight decay 0.01 on
everything except biases and LayerNorms, linear warm-up over the first tenth of the updates and linear decay
to 0, batches of 32, dropout 0.1, gradients clipped to norm 1, texts truncated to 96 tokens, 3 epochs of SST-2
and 5 of TREC, and a head on the pooled [CLS] initialized from N(0, 0.02). Everything is float32. A batch
holds texts of similar length.

If ``--rates`` lists several learning rates, the program trains with each of them on the first seed for fewer
epochs (1 of SST-2, 2 of TREC, with a warm-up and decay of the same proportions) and keeps the one with the
best held-out accuracy. The held-out texts are SST-2's validation split, or the last 452 training questions of
TREC, on which the final models train too.

For each training the program prints the elapsed seconds and the processor time of all threads. Other work on
the machine affects the processor time less.

Data, in ``--data`` or $TRANSFORMER_JAX_DATA: ``sst2/{train,dev,test}.txt.gz``, lines "label text", and
``trec/{train,test}.txt.gz`` in Latin-1, lines "COARSE:fine text", of which the coarse label is the target.
"""

import argparse
import gzip
import math
import os
import pathlib
import time
from typing import NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # an extra: not in every environment
import transformers  # pyright: ignore[reportMissingImports]

BATCH_SIZE, MAX_LENGTH, WARMUP, DECAY, CLIP_NORM = 32, 96, 0.1, 0.01, 1.0
EPOCHS, SEARCH_EPOCHS = {"sst2": 3, "trec": 5}, {"sst2": 1, "trec": 2}
TREC_HELD_OUT = 452  # questions at the end of the training set
POOL = 50 * BATCH_SIZE  # texts sorted by length together

Examples = list[tuple[str, str]]  # text, label
Encoded = list[tuple[list[int], int]]  # token ids, label id


def read_split(folder: pathlib.Path, task: str, split: str) -> Examples:
    """Returns the texts and labels of a split."""
    encoding = {"sst2": "utf-8", "trec": "latin-1"}[task]
    with gzip.open(folder / task / f"{split}.txt.gz", "rt", encoding=encoding) as file:
        lines = [line.strip().split(" ", 1) for line in file]
    return [(text, label.split(":")[0]) for label, text in lines]


def encode(examples: Examples, labels: list[str], tokenizer: transformers.PreTrainedTokenizerBase) -> Encoded:
    """Encodes each text as [CLS] text [SEP], truncated to 96 tokens; prints how many were truncated."""
    texts = [text for text, _ in examples]
    cut = sum(len(ids) > MAX_LENGTH for ids in tokenizer(texts, verbose=False)["input_ids"])
    if cut:
        print(f"{cut} of {len(texts)} texts are cut to {MAX_LENGTH} tokens")
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return [(ids, labels.index(label)) for ids, (_, label) in zip(encoded, examples, strict=True)]


def collate(rows: Encoded) -> dict[str, torch.Tensor]:
    """Returns a batch padded to its longest text."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in rows])}


def epoch_batches(examples: Encoded, rng: np.random.Generator) -> list[Encoded]:
    """Returns the batches of one epoch, in random order; a batch holds texts of similar length."""
    order, batches = rng.permutation(len(examples)), []
    for start in range(0, len(order), POOL):
        pool = sorted((examples[i] for i in order[start : start + POOL]), key=lambda row: len(row[0]))
        batches += [pool[i : i + BATCH_SIZE] for i in range(0, len(pool), BATCH_SIZE)]
    return [batches[i] for i in rng.permutation(len(batches))]


def make_optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on everything except biases and LayerNorms."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        (kept if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def rate_factor(update: int, updates: int) -> float:
    """Returns the factor of the learning rate at ``update``, counted from 1: rises, then falls to 0."""
    warmup = math.ceil(WARMUP * updates)
    return update / warmup if update < warmup else (updates - update) / (updates - warmup)


class Trained(NamedTuple):
    """Holds a fine-tuned model and what its training took."""

    model: torch.nn.Module
    seconds: float
    processor_seconds: float


def fine_tune(folder: str, train: Encoded, num_labels: int, epochs: int, rate: float, seed: int) -> Trained:
    """Trains once, from reading the checkpoint to the last update."""
    start, processor_start = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)  # seeds the head and dropout
    rng = np.random.default_rng(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=num_labels, dtype=torch.float32
    )
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    optimizer = make_optimizer(model.train(), rate)
    batches = [rows for _ in range(epochs) for rows in epoch_batches(train, rng)]
    losses = []
    for update, rows in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(update, len(batches))
        loss = model(**collate(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if update % 100 == 0:
            mean, seconds = np.mean(losses[-100:]), time.perf_counter() - start
            print(f"  update {update} of {len(batches)}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
    return Trained(model, time.perf_counter() - start, time.process_time() - processor_start)


def accuracy(model: torch.nn.Module, examples: Encoded) -> float:
    """Returns the percentage of examples that the model classifies correctly."""
    model.eval()
    rows, correct = sorted(examples, key=lambda row: len(row[0])), 0
    with torch.inference_mode():
        for start in range(0, len(rows), 4 * BATCH_SIZE):
            batch = collate(rows[start : start + 4 * BATCH_SIZE])
            labels = batch.pop("labels")
            correct += int((model(**batch).logits.argmax(-1) == labels).sum())
    return 100 * correct / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=tuple(EPOCHS), required=True)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--data", default=os.environ.get("TRANSFORMER_JAX_DATA", "data"))
    parser.add_argument(
        "--rates", default="5e-5,1e-4,2e-4", help="peak learning rates; several are compared first"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    rates = [float(rate) for rate in arguments.rates.split(",")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()  # it would warn that the head is new
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    names = {"sst2": ("train", "test", "dev"), "trec": ("train", "test")}[arguments.task]
    splits = [read_split(pathlib.Path(arguments.data), arguments.task, name) for name in names]
    labels = sorted({label for _, label in splits[0]})
    train, test, *rest = (encode(split, labels, tokenizer) for split in splits)
    search_train, held_out = (train, *rest) if rest else (train[:-TREC_HELD_OUT], train[-TREC_HELD_OUT:])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} threads")
    print(f"{len(train)} texts to learn from, {len(test)} to test on, labels {' '.join(labels)}")

    def run(examples: Encoded, epochs: int, rate: float, seed: int) -> Trained:
        return fine_tune(arguments.model, examples, len(labels), epochs, rate, seed)

    if len(rates) > 1:
        scores = {}
        for rate in rates:
            trained = run(search_train, SEARCH_EPOCHS[arguments.task], rate, seeds[0])
            scores[rate] = accuracy(trained.model, held_out)
            print(f"rate {rate:g}: held-out accuracy {scores[rate]:.2f} %", flush=True)
        rates = [max(rates, key=scores.__getitem__)]
    tests, times = [], []
    for seed in seeds:
        trained = run(train, EPOCHS[arguments.task], rates[0], seed)
        tests.append(accuracy(trained.model, test))
        times.append(trained[1:])
        print(
            f"rate {rates[0]:g} seed {seed}: test accuracy {tests[-1]:.2f} %, {trained.seconds:.0f} s, "
            f"processor {trained.processor_seconds:.0f} s",
            flush=True,
        )
    seconds, processor = np.mean(times, axis=0)
    print(
        f"{arguments.task}: mean test accuracy {np.mean(tests):.2f} % ({min(tests):.2f} to {max(tests):.2f}) "
        f"of {len(seeds)} seeds at rate {rates[0]:g}; {seconds:.0f} s a training, processor {processor:.0f} s"
    )


if __name__ == "__main__":
    main()
