"""Members of sweeps: read, refused, named; and the table of what became of them."""

import json
import pathlib
import re

import pytest

from transformer_jax.config import ConfigError
from transformer_jax.launching import sweeps
from transformer_jax.launching.run import read_run, record_end, record_start
from transformer_jax.launching.sweep_results import has_failures, read_results, report_results
from transformer_jax.reporting.progress import MetricWriter
from transformer_jax.runs.folder import store_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
CONFIG = """
import pathlib
from tests.tiny_training import tiny_experiment
def get_config(variant="a"):
    changes = {"train": dict(num_steps=6)} if variant == "a" else {"train": dict(num_steps=8)}
    return tiny_experiment(pathlib.Path("/nowhere"), **changes).to_config_dict()
"""


@pytest.fixture
def read(tmp_path):
    """Reads the members of a sweep that is given as Python text."""

    def read_text(text: str, *arguments: str, variant: str = ""):
        path = tmp_path / "tiny.py"
        path.write_text(CONFIG + text)
        given = [f"--config={path}{variant}", f"--workdir={tmp_path}/sweep", *arguments]
        return sweeps.read_members(read_run(given))

    return read_text


def sweep_of(*members: object) -> str:
    return f"def sweep():\n    yield from {list(members)!r}\n"


def test_members_have_names_flags_and_experiments_of_their_own(read, tmp_path):
    text = sweep_of(
        {"train.seed": 3, "optimizer.peak_rate": 1e-3},
        {"model.scan_layers": True, "data.buckets": [8, 32]},
        {},
    )
    first, second, third = read(text, "--config.train.num_steps=9", "--verbosity=0")
    assert [member.name for member in (first, third)] == [
        "optimizer.peak_rate=0.001,train.seed=3",
        "unchanged",
    ]
    assert first.run.workdir == f"{tmp_path}/sweep/{first.name}"
    assert first.run.arguments == (
        f"--config={tmp_path}/tiny.py", "--config.train.num_steps=9", "--verbosity=0",
        "--config.train.seed=3", "--config.optimizer.peak_rate=0.001",
    )  # fmt: skip
    found = [(m.run.experiment.train.seed, m.run.experiment.optimizer.peak_rate) for m in (first, third)]
    assert found == [(3, 1e-3), (0, 3e-3)]
    assert second.run.experiment.model.scan_layers and second.run.experiment.data.buckets == (8, 32)
    assert {m.run.experiment.train.num_steps for m in (first, second, third)} == {9}


def test_the_argument_of_get_config_is_that_of_sweep(read):
    text = 'def sweep(variant="a"):\n    yield {"train.seed": len(variant)}\n'
    (member,) = read(text, variant=":bcd")
    assert (member.run.experiment.train.seed, member.run.experiment.train.num_steps) == (3, 8)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", (), "has no function sweep()"),
        ("sweep = 3", (), "has no function sweep()"),
        ("def sweep():\n    return []", (), "yields no member"),
        ("def sweep():\n    return {'train.seed': 1}", (), "member 1 is 'train.seed', but must be a dict"),
        ("def sweep():\n    return 3", (), "raised TypeError: 'int' object is not iterable"),
        ("def sweep():\n    yield 1 / 0", (), "raised ZeroDivisionError: division by zero"),
        ("def sweep(needed):\n    yield {}", (), "cannot be called with no argument: missing"),
        (sweep_of({}, {"train.sede": 1}), (), "member 2: config has no key 'train.sede': did you mean 'tr"),
        (sweep_of({"optimizer": 1}), (), "it is a section; set its keys, such as 'optimizer."),
        (sweep_of({1: 1}), (), "the key 1 must be a dotted name, such as 'train.seed'"),
        (sweep_of({"train.seed": {"a": 1}}), (), "must be a number, a string, a bool or a tuple of these"),
        (sweep_of({"train.seed": "1"}), (), "member 1: config.train.seed takes values such as 1, not '1'"),
        (sweep_of({"train.seed": "x"}), (), "seed=x: invalid literal for int()"),
        (sweep_of({"model.remat": 1}), (), "config.model.remat takes values such as True, not 1"),
        (sweep_of(*({"train.seed": seed} for seed in (1, 2, 1))), (), "members 1 and 3 are the same"),
        (sweep_of({}, {"train.seed": 0}), (), "members 1 and 2 are the same experiment"),
        (sweep_of({"train.seed": -1}), (), "member 1: config.train.seed=-1 must be from 0"),
        (sweep_of({"train.seed": 1}), ("--config.train.seed=2",), "command line sets config.train.seed too"),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_one_clear_error(read, text, arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(text, *arguments)
    assert "\n" not in str(caught.value) and "tiny.py" in str(caught.value)


def test_a_sweep_needs_a_config_and_a_folder_of_its_own(read, tmp_path):
    text = sweep_of({"train.seed": 1})
    (member,) = read(text)
    store_config_in(tmp_path / "sweep", member.run.experiment)
    with pytest.raises(ConfigError, match="contains a single run; give the sweep another --workdir"):
        read(text)
    stored = read_run([f"--workdir={tmp_path}/sweep"])
    with pytest.raises(ConfigError, match="--sweep needs --config"):
        sweeps.read_members(stored)


def store_config_in(folder, experiment):
    folder.mkdir(parents=True, exist_ok=True)
    store_config(folder, experiment)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"train.seed": 1, "data.seed": 2}, "data.seed=2,train.seed=1"),
        ({"data.seed": 2, "train.seed": 1}, "data.seed=2,train.seed=1"),
        ({"optimizer.peak_rate": 1e-05}, "optimizer.peak_rate=1e-05"),
        ({"model.remat": True}, "model.remat=true"),
        ({"train.init_from": ""}, "train.init_from="),
    ],
)
def test_names_are_readable_and_do_not_depend_on_order(overrides, name):
    assert sweeps.member_name(overrides) == name


def test_values_that_no_folder_can_be_named_by_keep_names_apart():
    values = ["../x/y", "..\\x y", "A", "a", "x" * 300, "x" * 301, ("a", 1), "ä", "ö"]
    names = [sweeps.member_name({"train.init_from": value}) for value in values]
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"train\.init_from=[\w.=,+-]*", name, re.ASCII) and len(name) < 200, name
    assert names == [sweeps.member_name({"train.init_from": value}) for value in values]  # stable


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_sweeps_of_experiments_can_be_started(path, tmp_path):
    has_one = "\ndef sweep(" in path.read_text()
    run = read_run([f"--config={path}", f"--workdir={tmp_path}"])
    if has_one:
        assert len(sweeps.read_members(run)) > 1
        assert "--sweep" in path.read_text()
    else:
        with pytest.raises(ConfigError, match=r"has no function sweep\(\)"):
            sweeps.read_members(run)


# Results, in folders as training leaves them.


def finish(member, values, metric="loss", **figures):
    folder = pathlib.Path(member.run.workdir)
    store_config_in(folder, member.run.experiment)
    with MetricWriter(folder) as writer:
        for step, value in enumerate(values, 1):
            writer.write(step, {metric: value}, "validation")
    summary = {"parameters": 7, "steps": 6, "training_seconds": 4.0, "split": "test", "bleu_signature": "x"}
    (folder / "summary.json").write_text(json.dumps(summary | figures))


def save_step(member, step):
    folder = pathlib.Path(member.run.workdir)
    store_config_in(folder, member.run.experiment)
    for number, is_whole in ((step, True), (step + 1, False)):
        (folder / "checkpoints" / str(number)).mkdir(parents=True)
        if is_whole:
            (folder / "checkpoints" / str(number) / "commit_success.txt").touch()


@pytest.fixture
def swept(read, tmp_path):
    members = read(sweep_of(*({"train.seed": seed} for seed in range(7))))
    run = read_run([f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/sweep"])
    assert sweeps.begin_sweep(run, members) == list(members)
    return run, members


def test_results_are_ranked_by_validation_and_tell_every_state(swept, capsys):
    run, members = swept
    finish(members[0], [1.0, 3.0], loss=1.0)  # the best one on the test split is not the first
    finish(members[1], [9.0, 2.0], loss=5.0)
    save_step(members[2], 4)
    record_start(members[2].run.workdir, "log.txt")
    record_end(members[2].run.workdir, "log.txt", 0)
    record_start(members[3].run.workdir, "log.txt")
    (pathlib.Path(members[3].run.workdir) / "log.txt").write_text("why")
    record_end(members[3].run.workdir, "log.txt", 3)
    record_start(members[4].run.workdir, "log.txt")
    finish(members[6], [float("nan")], loss=4.0)
    results = read_results(run.workdir)
    assert [(row["name"], row["state"], row["steps"]) for row in results["members"]] == [
        ("train.seed=1", "finished", 6),
        ("train.seed=0", "finished", 6),
        ("train.seed=6", "finished", 6),
        ("train.seed=2", "stopped", 4),
        ("train.seed=3", "failed", None),
        ("train.seed=4", "unfinished", None),
        ("train.seed=5", "not started", None),
    ]
    assert (results["ranked_by"], results["mode"]) == ("loss", "min")
    assert results["members"][0]["figures"] == {"training_seconds": 4.0, "loss": 5.0}
    assert [row["validation"] for row in results["members"][:2]] == [2.0, 3.0]
    assert has_failures(results)
    report_results(run.workdir)
    printed = capsys.readouterr().out
    folder = pathlib.Path(run.workdir)
    assert (folder / "sweep_results.txt").read_text() == printed
    assert json.loads((folder / "sweep_results.json").read_text())["members"][1]["overrides"] == {
        "train.seed": 0
    }
    lines = printed.splitlines()
    assert "7 members, 3 finished, 1 failed; lowest loss of the validation split first" in lines[0]
    assert lines[2].split() == ["seed", "state", "steps", "validation", "loss", "loss", "training_seconds"]
    assert lines[3].split() == ["1", "finished", "6", "2", "5", "4"]
    assert lines[6].split() == ["2", "stopped", "4", "of", "6", "-", "-", "-"]
    assert lines[-1] == f"failed with status 3: train.seed=3: see {folder}/train.seed=3/log.txt"


def test_the_highest_comes_first_where_that_is_best(read, tmp_path):
    best = {"checkpoint.best_metric": "accuracy", "checkpoint.best_mode": "max"}
    members = read(sweep_of(*({"train.seed": seed, **best} for seed in (1, 2))))
    run = read_run([f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/sweep"])
    sweeps.begin_sweep(run, members)
    for member, value in zip(members, (0.5, 0.75), strict=True):
        finish(member, [value], metric="accuracy")
    results = read_results(f"{tmp_path}/sweep")
    assert [row["overrides"]["train.seed"] for row in results["members"]] == [2, 1]
    assert (results["ranked_by"], results["mode"]) == ("accuracy", "max")


def test_a_summary_of_fewer_steps_than_are_asked_for_is_no_end(swept):
    run, members = swept
    finish(members[0], [1.0], steps=5)
    assert read_results(run.workdir)["members"][0]["state"] == "unfinished"
    assert not sweeps.is_finished(members[0].run)
    finish(members[1], [1.0])
    assert sweeps.is_finished(members[1].run) and not sweeps.is_finished(members[2].run)


def test_begun_again_a_sweep_says_what_is_done_and_what_is_gone(swept, read, capsys, tmp_path):
    run, members = swept
    finish(members[1], [1.0])
    fewer = read(sweep_of({"train.seed": 1}, {"train.seed": 2}))
    assert [member.name for member in sweeps.begin_sweep(run, fewer)] == ["train.seed=2"]
    said = capsys.readouterr().err
    assert "train.seed=1 is already finished" in said
    assert "train.seed=0 is no longer a member of this sweep; its folder is kept" in said


def test_a_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a sweep, because it has no sweep\.json"):
        read_results(str(tmp_path))
