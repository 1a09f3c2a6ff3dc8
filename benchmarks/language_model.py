"""Compares speed and loss of a small GPT on Shakespeare with nanoGPT, in alternating runs on one machine.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/language_model.py --nanogpt=nanoGPT --python=PYTHON_WITH_TORCH --rounds=3

nanoGPT runs the command that its README gives for a computer without a GPU, with its own train.py: 4 layers,
4 heads, width 128, 12 blocks of 64 characters per step, 2,000 steps, no dropout. This project runs
experiments/gpt2_chars.py on one CPU device that uses all cores. ``--cpu_devices`` sets another number of
devices, which share the batch and the cores (XLA has been seen to hang then, in the sums over devices). Each
run is a process of its own with all cores, and the two projects take turns. ``--nanogpt_flags`` changes
nanoGPT's settings, for example to compare the implementations with equal hyperparameters:
``--nanogpt_flags="--learning_rate=2e-3 --min_lr=2e-4 --bias=True"``.

The program prints three figures, because they answer different questions:

* the time per step: the median over windows of 50 steps without an evaluation, so neither compilation nor the
  amount of evaluation affects it;
* the time of the whole command, including imports, compilation, checkpoints and each side's own evaluations
  every 250 steps: nanoGPT evaluates 40 random batches, this project the whole validation text;
* the loss in nats on the last tenth of the text after the last step, in consecutive blocks of 64 characters,
  each without context from earlier blocks. nanoGPT's last checkpoint is evaluated in the same way, and its
  own estimate from 20 random batches is printed beside the result.

The text is ``tinyshakespeare/input.txt.gz`` in ``--data`` or $TRANSFORMER_JAX_DATA. ``--python`` needs only
torch and NumPy and may belong to another environment. Nothing is written to nanoGPT's folder.
"""

import argparse
import dataclasses
import gzip
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, EVALUATE_EVERY, WINDOW, BLOCK, ROWS = 2000, 250, 50, 64, 12
# The README's command; it also stores the last step's checkpoint if an earlier one was better.
NANOGPT_FLAGS = (
    f"--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size={BLOCK} --batch_size={ROWS} "
    f"--n_layer=4 --n_head=4 --n_embd=128 --max_iters={STEPS} --lr_decay_iters={STEPS} --dropout=0.0 "
    "--always_save_checkpoint=True"
).split()
JAX_FLAGS = [
    f"--config.train.num_steps={STEPS}",
    f"--config.train.evaluate_every_steps={EVALUATE_EVERY}",
    f"--config.train.log_every_steps={WINDOW}",
]


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds the times and the loss of one training."""

    step: float  # median seconds per step
    command: float  # seconds of the whole command
    loss: float  # nats per character, on the whole validation text
    parameters: int
    remark: str = ""

    def __str__(self) -> str:
        return (
            f"{1e3 * self.step:.2f} ms a step ({STEPS * self.step:.1f} s for {STEPS:,}), command "
            f"{self.command:.1f} s, validation loss {self.loss:.4f}, {self.parameters:,} parameters"
            f"{self.remark}"
        )


def run_command(
    command: list[str], folder: pathlib.Path, data: str, environment: dict[str, str] | None = None
) -> tuple[str, float]:
    """Runs a command and returns its output and its seconds.

    If the command fails, prints the end of its output and exits.
    """
    start = time.perf_counter()
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"TRANSFORMER_JAX_DATA": data} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        sys.exit(f"{result.stdout[-3000:]}\nerror: {' '.join(command)} ended with {result.returncode}")
    return result.stdout, time.perf_counter() - start


def write_nanogpt_data(text: str, folder: pathlib.Path) -> None:
    """Writes the files that nanoGPT reads: train.bin (nine tenths), val.bin (the rest) and meta.pkl.

    Ids are the indices of the sorted characters.
    """
    folder.mkdir(parents=True)
    characters = sorted(set(text))
    ids = {character: number for number, character in enumerate(characters)}
    array = np.array([ids[character] for character in text], np.uint16)
    border = int(0.9 * len(text))
    array[:border].tofile(folder / "train.bin")
    array[border:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "stoi": ids, "itos": dict(enumerate(characters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def run_nanogpt(arguments: argparse.Namespace, folder: pathlib.Path) -> Run:
    """Trains nanoGPT once and evaluates its last checkpoint."""
    checkout = pathlib.Path(arguments.nanogpt).resolve()
    with gzip.open(pathlib.Path(arguments.data, "tinyshakespeare", "input.txt.gz"), "rt") as file:
        write_nanogpt_data(file.read(), folder / "data" / "shakespeare_char")
    (folder / "configurator.py").symlink_to(checkout / "configurator.py")  # read from the current folder
    files = [str(checkout / "train.py"), str(checkout / "config" / "train_shakespeare_char.py")]
    output, seconds = run_command(
        [arguments.python, *files, *NANOGPT_FLAGS, *arguments.nanogpt_flags.split(), f"--out_dir={folder}"],
        folder,
        arguments.data,
    )
    times = {int(n): 1e-3 * float(t) for n, t in re.findall(r"^iter (\d+): .* time ([\d.]+)ms", output, re.M)}
    windows = [
        np.mean([times[n] for n in range(start + 1, start + WINDOW)])  # the first step may evaluate
        for start in range(WINDOW, STEPS, WINDOW)
    ]
    estimates = dict(re.findall(r"^step (\d+): .* val loss ([\d.]+)", output, re.M))
    command = [arguments.python, __file__, f"--score={folder}", f"--nanogpt={checkout}"]
    score = json.loads(run_command(command, folder, arguments.data)[0].splitlines()[-1])
    remark = f", its own estimate {estimates[str(STEPS)]}, torch {score['version']}"
    return Run(float(np.median(windows)), seconds, score["loss"], score["parameters"], remark)


def score_nanogpt(checkout: str, folder: pathlib.Path) -> None:
    """Prints the loss of the checkpoint in ``folder`` on all blocks, as JSON.

    Runs in the Python that has torch.
    """
    import torch  # pyright: ignore[reportMissingImports]  # an extra: not in every environment

    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig  # pyright: ignore[reportMissingImports]  # nanoGPT's

    checkpoint = torch.load(folder / "ckpt.pt", map_location="cpu", weights_only=True)
    assert checkpoint["iter_num"] == STEPS
    model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    ids = np.fromfile(folder / "data" / "shakespeare_char" / "val.bin", np.uint16).astype(np.int64)
    inputs, targets = torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])
    whole = len(inputs) // BLOCK * BLOCK
    sides = (tokens[:whole].view(-1, BLOCK).split(128) for tokens in (inputs, targets))
    batches = list(zip(*sides, strict=True))
    if whole < len(inputs):
        batches.append((inputs[None, whole:], targets[None, whole:]))
    with torch.inference_mode():
        total = sum(model(x, y)[1].item() * y.numel() for x, y in batches)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = {"loss": total / len(inputs), "parameters": parameters, "version": torch.__version__}
    print(json.dumps(figures))


def run_jax(arguments: argparse.Namespace, folder: pathlib.Path) -> Run:
    """Trains ``experiments/gpt2_chars.py`` once."""
    config = ROOT / "experiments" / "gpt2_chars.py"
    command = [sys.executable, "-m", "transformer_jax.train", f"--config={config}", f"--workdir={folder}"]
    devices = {"JAX_NUM_CPU_DEVICES": str(arguments.cpu_devices)}
    _, seconds = run_command([*command, *JAX_FLAGS], ROOT, arguments.data, devices)
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    times = {record["step"]: record["time"] for record in records if "train/loss" in record}
    losses = {record["step"]: record["validation/loss"] for record in records if "validation/loss" in record}
    windows = [
        (times[start + WINDOW] - times[start]) / WINDOW
        for start in range(WINDOW, STEPS, WINDOW)
        if start not in losses  # the window begins with an evaluation
    ]
    parameters = json.loads((folder / "summary.json").read_text())["parameters"]
    return Run(float(np.median(windows)), seconds, losses[STEPS], parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nanogpt", help="folder of a checkout of karpathy/nanoGPT", required=True)
    parser.add_argument("--nanogpt_flags", default="", help="further flags of its train.py, in one string")
    parser.add_argument("--python", default=sys.executable, help="Python that has torch")
    parser.add_argument("--data", default=os.environ.get("TRANSFORMER_JAX_DATA", "data"))
    parser.add_argument("--cpu_devices", type=int, default=1, help="CPU devices of this project's side")
    parser.add_argument("--rounds", type=int, default=3, help="number of trainings of each side")
    parser.add_argument("--sides", default="nanogpt,jax", help="nanogpt, jax, or both")
    parser.add_argument("--score", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score:
        return score_nanogpt(arguments.nanogpt, pathlib.Path(arguments.score))
    arguments.data = os.path.abspath(arguments.data)
    python = shutil.which(arguments.python)
    if python is None:
        sys.exit(f"error: --python={arguments.python} was not found; name a Python that has torch")
    arguments.python = os.path.abspath(python)  # nanoGPT runs in a folder of its own
    sides = {"nanogpt": run_nanogpt, "jax": run_jax}
    runs: dict[str, list[Run]] = {side: [] for side in arguments.sides.split(",")}
    for number in range(arguments.rounds):
        for side in runs:
            with tempfile.TemporaryDirectory() as folder:
                runs[side].append(sides[side](arguments, pathlib.Path(folder)))
            print(f"round {number + 1}  {side:8} {runs[side][-1]}", flush=True)
    middle = {
        side: {
            name: float(np.median([getattr(run, name) for run in runs[side]]))
            for name in ("step", "command", "loss")
        }
        for side in runs
    }
    print("\nmedians of the rounds")
    for side, figures in middle.items():
        print(f"{side:8} {1e3 * figures['step']:.2f} ms a step, command {figures['command']:.1f} s, "
              f"validation loss {figures['loss']:.4f}")  # fmt: skip
    if len(middle) == 2:
        ratios = {name: middle["nanogpt"][name] / middle["jax"][name] for name in ("step", "command")}
        print(f"ratio    {ratios['step']:.2f} x as fast as nanoGPT a step, {ratios['command']:.2f} x in all")


if __name__ == "__main__":
    main()
