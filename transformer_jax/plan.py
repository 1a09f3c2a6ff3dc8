"""Predicts memory and speed of an experiment on accelerators that this machine does not have.

    python -m transformer_jax.plan --config=experiments/wmt14_en_de.py:big --topology=v5e:4x4
    python -m transformer_jax.plan --config=... --topology=h100:8 --config.mesh.fsdp=8 --json
    python -m transformer_jax.plan --config=... --topology=v5p:4x4x4 --search

The program compiles the real training, evaluation and decoding steps for the accelerators, on a machine that
has only a CPU. From the compiled programs it reports memory, operations and collectives, and the time that
they take at published peak rates: a prediction, not a measurement. ``--search`` tries several meshes and
ranks those that fit. ``--json`` prints the report for other programs; ``planning.report.to_json`` describes
its keys, which do not change between versions.

The compilers are not part of the usual installation. ``make plan-env`` creates an environment with them,
``.venv-plan``. The program writes nothing to disk.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from transformer_jax.cli.flags import parse_flags, reported_errors
from transformer_jax.cli.process import prepare_process
from transformer_jax.config import ConfigError
from transformer_jax.planning.hardware import DEVICES, EXAMPLES, Topology, read_topology
from transformer_jax.planning.planner import make_plan, with_rows
from transformer_jax.planning.programs import STEPS
from transformer_jax.planning.report import to_json, to_text, write_json
from transformer_jax.planning.search import search
from transformer_jax.planning.search_report import search_json, search_text
from transformer_jax.runs.experiment import Experiment, read_experiment
from transformer_jax.sharding.partitioning import MESH_AXES, MeshConfig

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    prepare_process()
    jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are not used
    with reported_errors():
        topology = read_topology(FLAGS.topology)
        experiment = read_experiment(FLAGS.config)
        if FLAGS.rows_per_device:
            experiment = with_rows(experiment, FLAGS.rows_per_device, topology.num_devices)
        name = config_flags.get_config_filename(FLAGS["config"])
        if FLAGS.search:
            _search(experiment, topology, name)
            return
        plan = make_plan(experiment, topology, name=name, steps=_steps())
        print(write_json(to_json(plan)) if FLAGS.json else to_text(plan))


def _search(experiment: Experiment, topology: Topology, name: str) -> None:
    found = search(experiment, topology, name=name, most=FLAGS.search_compilations, progress=_say)
    print(write_json(search_json(found)) if FLAGS.json else search_text(found))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _steps() -> list[str]:
    for name in FLAGS.steps:
        if name not in STEPS:
            raise ConfigError(
                f"--steps={','.join(FLAGS.steps)}: {name!r} is not a step; choose from {', '.join(STEPS)}"
            )
    return [name for name in STEPS if name in FLAGS.steps]


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File of the experiment, such as experiments/wmt14_en_de.py:big. Change any key with "
        "--config.SECTION.KEY=VALUE, such as --config.mesh.tensor=2.",
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string(
        "topology",
        None,
        f"Devices to compile for: a kind and their number or shape. Kinds are {', '.join(DEVICES)}; examples "
        + ", ".join(examples[-1] for examples in EXAMPLES.values())
        + ".",
        required=True,
    )
    flags.DEFINE_integer(
        "rows_per_device",
        None,
        "Rows of the batch per device, instead of the number that follows from config.data.",
        lower_bound=1,
    )
    flags.DEFINE_list("steps", list(STEPS), f"Steps to compile: any of {', '.join(STEPS)}.")
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
    flags.DEFINE_bool(
        "search", False, "Try meshes, gradient checkpointing and rows per device, and rank those that fit."
    )
    flags.DEFINE_integer(
        "search_compilations", 8, "Maximum number of candidates that --search compiles.", lower_bound=1
    )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    keys = [field.name for field in dataclasses.fields(MeshConfig)]
    for argument in argv:
        match = re.match(r"--?config\.mesh\.(\w+)", argument)
        if match and match[1] not in keys:
            sys.exit(
                f"error: {argument}: the mesh has no axis {match[1]!r}; its axes are {', '.join(MESH_AXES)}"
            )
    try:
        return parse_flags(argv)
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=_parse_flags)
