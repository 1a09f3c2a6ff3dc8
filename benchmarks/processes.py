"""Compares the speed of training on two processes with that of one process with two devices.

    python benchmarks/processes.py
    python benchmarks/processes.py --config=experiments/multi30k_en_de.py --num_steps=100 --rounds=5

Both variants train on two CPU devices in a mesh, and their runs alternate. The devices of one process share
memory; two processes exchange gradients through sockets, as machines do. The figure is the tokens per second
over the last 30 seconds of a training, so train long enough that nothing is compiled in that time.
``--default_threads`` gives the single process XLA's default, one thread per core. That is faster, but the
devices can wait for one another for ever.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from absl import app, flags

from transformer_jax.cli.process import CPU_THREADS_VARIABLE
from transformer_jax.reporting.progress import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
VARIANTS = {"1 process, 2 devices": ("-n", "1", "--devices_per_process=2"), "2 processes": ("-n", "2")}
_DEFAULT_THREADS = {"1 process, 2 devices": {CPU_THREADS_VARIABLE: str(os.cpu_count())}}


def tokens_per_second(
    config: str, num_steps: int, processes: tuple[str, ...], environment: Mapping[str, str]
) -> float:
    """Returns the tokens per second over the last 30 seconds of a run.

    Args:
      config: the experiment.
      num_steps: updates of the run.
      processes: the launcher's flags that set the numbers of processes and devices.
      environment: further environment variables.
    """
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
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(FLAGS.rounds):
        for name, processes in VARIANTS.items():
            environment = _DEFAULT_THREADS.get(name, {}) if FLAGS.default_threads else {}
            speeds[name].append(tokens_per_second(FLAGS.config, FLAGS.num_steps, processes, environment))
            print(f"round {number + 1}  {name:22}{speeds[name][-1]:10,.0f} tokens/s", flush=True)
    one_process, two_processes = map(statistics.median, speeds.values())
    print(
        f"median: {two_processes:,.0f} tokens/s on 2 processes, {two_processes / one_process:.2f} x the "
        "speed of one process with 2 devices"
    )


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("config", "experiments/number_words.py", "The experiment to train.")
    flags.DEFINE_integer("num_steps", 800, "Updates per run.", lower_bound=4)
    flags.DEFINE_integer("rounds", 3, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_bool("default_threads", False, "The single process has one thread per core.")
    app.run(main)
