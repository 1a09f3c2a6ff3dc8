"""Speed of a training on two processes of this machine beside one process with two devices, alternating.

    python benchmarks/processes.py
    python benchmarks/processes.py --config=experiments/multi30k_en_de.py --num_steps=100 --rounds=5

Both have two CPU devices in a mesh. One process shares memory between them; two exchange gradients through
sockets, as machines would. Compared are the tokens a second over the last 30 seconds of training: take so
many steps that nothing is compiled then. ``--default_threads`` leaves the one process with as many threads
as there are cores, which is XLA's default: quicker, but devices can wait for one another for ever.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from absl import app, flags

from transformer_jax.progress import read_metrics
from transformer_jax.runtime import CPU_THREADS_VARIABLE

ROOT = pathlib.Path(__file__).resolve().parents[1]
VARIANTS = {"1 process, 2 devices": ("-n", "1", "--devices_per_process=2"), "2 processes": ("-n", "2")}
_DEFAULT_THREADS = {"1 process, 2 devices": {CPU_THREADS_VARIABLE: str(os.cpu_count())}}


def tokens_per_second(
    config: str, num_steps: int, processes: tuple[str, ...], environment: Mapping[str, str]
) -> float:
    """Of the last 30 seconds of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(ROOT / "launch" / "local.py"), *processes,
            f"--config={config}", f"--workdir={folder}/run",
            f"--config.train.num_steps={num_steps}", f"--config.train.log_every_steps={num_steps}",
            f"--config.train.evaluate_every_steps={num_steps}", "--config.evaluate.num_samples=0",
        ]  # fmt: skip
        environment = {**os.environ, **environment}
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
        records = read_metrics(f"{folder}/run")
    return next(r["train/tokens_per_second"] for r in records if r["step"] == num_steps and "train/loss" in r)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(FLAGS.rounds):
        for name, processes in VARIANTS.items():
            environment = _DEFAULT_THREADS.get(name, {}) if FLAGS.default_threads else {}
            found[name].append(tokens_per_second(FLAGS.config, FLAGS.num_steps, processes, environment))
            print(f"round {number + 1}  {name:22}{found[name][-1]:10,.0f} tokens/s", flush=True)
    one, two = (statistics.median(speeds) for speeds in found.values())
    print(f"median: {two:,.0f} tokens/s on 2 processes are {two / one:.2f} x those of one with 2 devices")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("config", "experiments/number_words.py", "What to train.")
    flags.DEFINE_integer("num_steps", 800, "Updates of each run.", lower_bound=4)
    flags.DEFINE_integer("rounds", 3, "Runs of each.", lower_bound=1)
    flags.DEFINE_bool("default_threads", False, "The one process has a thread for each core.")
    app.run(main)
