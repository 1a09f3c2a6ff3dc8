"""Which flags are a launcher's own, and what the others are read as before anything is started."""

import json

import pytest
from absl import flags

from transformer_jax.config import ConfigError
from transformer_jax.launching.run import read_run, record_end, record_start, split_flags
from transformer_jax.runs.folder import store_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

CONFIG = """
import pathlib
from tests.tiny_training import tiny_experiment
def get_config(folder="/nowhere"):
    return tiny_experiment(pathlib.Path(folder)).to_config_dict()
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def own_flags() -> flags.FlagValues:
    own = flags.FlagValues()
    flags.DEFINE_integer("count", 1, "", short_name="n", lower_bound=1, flag_values=own)
    flags.DEFINE_bool("sweep", False, "", flag_values=own)
    return own


def test_own_flags_are_taken_wherever_they_stand_and_all_others_left_as_they_are():
    own = own_flags()
    argv = [
        "p", "--config=a.py:b", "-n", "4", "--config.train.seed", "5", "--sweep", "--workdir=x y",
        "--no_such", "--config.a='--n=3'", "--verbosity=-1",
    ]  # fmt: skip
    others = split_flags(argv, own)
    assert (own.count, own.sweep) == (4, True)
    assert others == [
        "p", "--config=a.py:b", "--config.train.seed", "5", "--workdir=x y",
        "--no_such", "--config.a='--n=3'", "--verbosity=-1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--count=0", "positive integer"), ("--sweep=3", "sweep"), ("-n", "Missing value")],
)
def test_a_bad_value_of_an_own_flag_is_one_line(argument, message):
    with pytest.raises(ConfigError, match=f"{message}.*--help explains the flags"):
        split_flags(["p", argument], own_flags())


def test_a_run_is_what_the_flags_say(config, tmp_path):
    changes = ["--config.train.seed=3", "--config.data.buckets=(4, 8)", "--verbosity=0"]
    given = [f"--config={config}:/x", *changes]
    run = read_run([*given[:1], "--workdir", f"{tmp_path}/run", *changes])
    assert run.workdir == f"{tmp_path}/run" and run.arguments == tuple(given)
    assert run.config_file == f"{config}:/x"
    assert run.overrides == {"train.seed": 3, "data.buckets": (4, 8)}
    assert (run.experiment.train.seed, run.experiment.data.source.folder) == (3, "/x")
    expected = ["python", "-m", "transformer_jax.train", *given, f"--workdir={tmp_path}/run"]
    assert run.command("python") == expected


def test_a_stored_run_goes_on_without_a_config(config, tmp_path):
    first = read_run([f"--config={config}", f"--workdir={tmp_path}"])
    store_config(tmp_path, first.experiment)
    run = read_run([f"--workdir={tmp_path}"])
    assert (run.experiment, run.config_file, run.overrides) == (first.experiment, "", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config={config}"], "workdir"),
        (["--workdir={folder}/none"], "holds no run"),
        (["--config={config}", "--workdir=gs://bucket/x"], "mount the bucket"),
        (["--config={config}", "--workdir={folder}", "--config.train.num_stps=3"], "mean 'num_steps'"),
        (
            ["--config={config}", "--workdir={folder}", "--config.train.num_steps=0"],
            "num_steps=0 must be",
        ),
        (["--config={config}", "--workdir={folder}", "--workdri=x"], "'workdri'"),
        (["--config={config}", "--workdir={folder}", "word"], r"unexpected arguments \['word'\]"),
        (["--config={config}.gone", "--workdir={folder}"], "tiny.py.gone"),
    ],
)
def test_what_the_train_program_would_refuse_is_refused_here(config, tmp_path, arguments, message):
    with pytest.raises((ConfigError, OSError), match=message):
        read_run([text.format(config=config, folder=tmp_path) for text in arguments])


def test_another_experiments_folder_is_refused(config, tmp_path):
    arguments = [f"--config={config}", f"--workdir={tmp_path}"]
    store_config(tmp_path, read_run(arguments).experiment)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    assert read_run([*arguments, "--config.train.num_steps=9"]).experiment.train.num_steps == 9
    with pytest.raises(ConfigError, match=r"(?s)another experiment.*train\.seed: 0 there, 1 here"):
        read_run([*arguments, "--config.train.seed=1"])


def test_starts_and_ends_are_noted(tmp_path):
    folder = tmp_path / "a" / "b"
    record_start(str(folder), "log.txt")
    assert json.loads((folder / "launch.json").read_text()) == {"log": "log.txt", "exit_status": None}
    record_end(str(folder), "log.txt", 3)
    assert json.loads((folder / "launch.json").read_text()) == {"log": "log.txt", "exit_status": 3}
