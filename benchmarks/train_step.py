"""Compares the seconds per train step of an encoder–decoder here and in PyTorch eager, on one machine.

    make benchmark          # or: python benchmarks/train_step.py --rounds=8

Both train the same shape (d_model 512, 6 + 6 layers, 8 heads, feed-forward 2,048, dropout 0.1, vocabulary
8,192 shared three ways, batch 16 x 64 tokens on each side, float32, label smoothing 0.1, Adam) on the same
random tokens. The peer is ``torch.nn.Transformer`` with ``torch.optim.Adam`` in eager mode. Each side runs in
its own process, and the sides take turns: while one executes its steps, the other waits. The result is the
ratio of the median step times, so other work on the machine affects both sides alike.

A third process computes only the matrix products of the step in JAX, forward and backward. They are a lower
bound: no implementation that uses the same products can be faster.

``--same_malloc`` gives PyTorch's process the memory settings that this project's trainer makes
(``keep_freed_memory``), which eager PyTorch does not make by itself.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

VOCAB_SIZE, D_MODEL, NUM_HEADS, D_FEEDFORWARD, NUM_LAYERS = 8192, 512, 8, 2048, 6
ROWS, LENGTH, DROPOUT, SMOOTHING, RATE = 16, 64, 0.1, 0.1, 1e-4
MAX_LENGTH = 512
SIDES = ("jax", "torch", "products")


def random_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Returns input and target tokens, int32 arrays (ROWS, LENGTH)."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(4, VOCAB_SIZE, (2, ROWS, LENGTH)).astype(np.int32)
    return inputs, targets


def jax_step() -> tuple[Callable[[], float], dict[str, object]]:
    """Returns a function that executes this project's train step, and facts to print.

    The function returns the loss, for which it waits.
    """
    import jax

    from transformer_jax import partitioning
    from transformer_jax.cli.process import keep_freed_memory
    from transformer_jax.data import DataConfig
    from transformer_jax.families import transformer
    from transformer_jax.objectives import Seq2Seq
    from transformer_jax.optimizers.optimizers import OptimizerConfig
    from transformer_jax.runs import Experiment, TrainConfig
    from transformer_jax.training.step import compile_train_step

    keep_freed_memory()
    experiment = Experiment(
        model=transformer.config(
            "base",
            vocab_size=VOCAB_SIZE,
            max_length=MAX_LENGTH,
            # The defaults of torch.nn.Transformer, which has a single dropout rate.
            dropout=DROPOUT,
            attention_dropout=DROPOUT,
            feedforward_dropout=DROPOUT,
            biases="all",
        ),
        objective=Seq2Seq(label_smoothing=SMOOTHING),
        data=DataConfig(),
        optimizer=OptimizerConfig(schedule="constant", peak_rate=RATE, warmup_steps=0),
        train=TrainConfig(),
    )
    mesh = partitioning.make_mesh(experiment.mesh)
    template, init, step = compile_train_step(experiment, mesh)
    state = init()
    batch = {}
    for side, tokens in zip(("inputs", "targets"), random_tokens(), strict=True):
        places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        batch |= {side: tokens, f"{side}_positions": places, f"{side}_segments": np.ones_like(tokens)}
    batch = partitioning.shard_batch(mesh, batch)

    def run() -> float:
        nonlocal state
        state, sums = step(state, batch)
        return float(sums["loss"] / sums["tokens"])

    count = sum(leaf.size for leaf in jax.tree.leaves(template.params))
    return run, {"version": f"jax {jax.__version__}", "parameters": count}


def products_step() -> tuple[Callable[[], float], dict[str, object]]:
    """Returns a function that computes the matrix products of a step, and facts to print.

    The products are ``x W``, ``dy W^T`` and ``x^T dy`` of each linear map, and those of attention.
    """
    import jax

    from transformer_jax.cli.process import keep_freed_memory

    keep_freed_memory()
    rows, head_size, attentions = ROWS * LENGTH, D_MODEL // NUM_HEADS, 3 * NUM_LAYERS
    maps = {  # (inputs, outputs): number of such maps in encoder and decoder
        (D_MODEL, D_MODEL): 4 * attentions,
        (D_MODEL, D_FEEDFORWARD): 2 * NUM_LAYERS,
        (D_FEEDFORWARD, D_MODEL): 2 * NUM_LAYERS,
        (D_MODEL, VOCAB_SIZE): 1,
    }
    rng = np.random.default_rng(0)
    map_arrays, head_arrays, multiplications = [], [], 0
    for (inputs, outputs), count in maps.items():
        shapes = ((rows, inputs), (inputs, outputs), (rows, outputs))  # x, W, dy
        map_arrays += [[rng.random(shape, np.float32) for shape in shapes] for _ in range(count)]
        multiplications += count * 3 * rows * inputs * outputs
    for _ in range(attentions):
        heads = rng.random((4, ROWS * NUM_HEADS, LENGTH, head_size), np.float32)  # Q, K, V, gradient
        weights = rng.random((2, ROWS * NUM_HEADS, LENGTH, LENGTH), np.float32)  # weights and their gradient
        head_arrays.append((*heads, *weights))
        multiplications += 6 * ROWS * NUM_HEADS * LENGTH**2 * head_size

    def swap(matrices):
        return matrices.swapaxes(-1, -2)

    @jax.jit
    def products(map_arrays, head_arrays):
        results = [(x @ w, dy @ w.T, x.T @ dy) for x, w, dy in map_arrays]
        for q, k, v, dy, weights, dw in head_arrays:
            results += [(q @ swap(k), weights @ v), (swap(weights) @ dy, dy @ swap(v), dw @ k, swap(dw) @ q)]
        return results

    arrays = jax.device_put((map_arrays, head_arrays))

    def run() -> float:
        jax.block_until_ready(products(*arrays))
        return 0.0

    return run, {"version": f"jax {jax.__version__}", "gigaflop": 2e-9 * multiplications}


def torch_step() -> tuple[Callable[[], float], dict[str, object]]:
    """Returns a function that executes the same step in eager PyTorch, and facts to print.

    The causal mask is also given as a hint (``tgt_is_causal``), so that PyTorch may use its fast path.
    """
    import torch  # pyright: ignore[reportMissingImports]  # an extra: not in every environment
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCAB_SIZE, D_MODEL)
            nn.init.normal_(self.embedding.weight, std=D_MODEL**-0.5)
            self.transformer = nn.Transformer(
                D_MODEL, NUM_HEADS, NUM_LAYERS, NUM_LAYERS, D_FEEDFORWARD, DROPOUT, batch_first=True
            )
            place, pair = torch.arange(MAX_LENGTH)[:, None], torch.arange(0, D_MODEL, 2)
            angles = place / 10_000 ** (pair / D_MODEL)
            table = torch.stack([angles.sin(), angles.cos()], -1).reshape(MAX_LENGTH, D_MODEL)
            self.register_buffer("positions", table)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))
            self.dropout = nn.Dropout(DROPOUT)

        def embed(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.embedding(tokens) * D_MODEL**0.5 + self.positions[: tokens.shape[1]])

        def forward(self, inputs: torch.Tensor, shifted: torch.Tensor) -> torch.Tensor:
            x = self.transformer(
                self.embed(inputs), self.embed(shifted), tgt_mask=self.mask, tgt_is_causal=True
            )
            return x @ self.embedding.weight.T

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = Model().train()
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.9, 0.98), eps=1e-9)
    inputs, targets = (torch.from_numpy(tokens.astype(np.int64)) for tokens in random_tokens())
    shifted = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=1)

    def run() -> float:
        optimizer.zero_grad()
        logits = model(inputs, shifted)
        loss = nn.functional.cross_entropy(
            logits.view(-1, VOCAB_SIZE), targets.view(-1), label_smoothing=SMOOTHING
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    count = sum(parameter.numel() for parameter in model.parameters())
    return run, {"version": f"torch {torch.__version__}", "parameters": count}


def worker(side: str, same_malloc: bool) -> None:
    """Executes as many steps as each line of standard input says, and prints their seconds as JSON."""
    if side == "torch" and same_malloc:
        from transformer_jax.cli.process import keep_freed_memory

        keep_freed_memory()
    run, facts = {"jax": jax_step, "torch": torch_step, "products": products_step}[side]()
    losses = [run() for _ in range(3)]  # warm-up: compiles, and touches all memory
    print(json.dumps(facts | {"first_losses": losses}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="number of turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument(
        "--same_malloc", action="store_true", help="use the trainer's memory settings for PyTorch too"
    )
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, arguments.same_malloc)
    processes, seconds = {}, {side: [] for side in SIDES}
    for side in SIDES:
        command = [sys.executable, __file__, f"--worker={side}"]
        command += ["--same_malloc"] if arguments.same_malloc else []
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes[side] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"error: the {side} side did not start; see its message above")
        print(f"{side:8} {line.strip()}")
    for number in range(arguments.rounds):
        for side in SIDES:
            process = processes[side]
            process.stdin.write(f"{arguments.steps}\n")
            process.stdin.flush()
            seconds[side] += json.loads(process.stdout.readline())
        last = {side: np.median(seconds[side][-arguments.steps :]) for side in SIDES}
        print(f"round {number + 1}: " + "  ".join(f"{side} {last[side]:.3f} s" for side in SIDES), flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    medians = {side: float(np.median(seconds[side])) for side in SIDES}
    tokens = 2 * ROWS * LENGTH
    print(f"\n{platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    for side in SIDES:
        spread = f"{min(seconds[side]):.3f} to {max(seconds[side]):.3f}"
        print(
            f"{side:8} median {medians[side]:.3f} s a step ({spread}), {tokens / medians[side]:,.0f} tokens/s"
        )
    print(f"products alone: {medians['products'] / medians['jax']:.0%} of the jax step")
    print(f"ratio  {medians['torch'] / medians['jax']:.2f} x as fast as PyTorch eager")


if __name__ == "__main__":
    main()
