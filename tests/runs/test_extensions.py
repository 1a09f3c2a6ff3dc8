"""Functions of other modules that an experiment names: they add to the library before a config is read."""

import dataclasses
import importlib
import json

import pytest

from tests.tiny_training import tiny_experiment
from transformer_jax.config import ConfigError
from transformer_jax.models.front_ends import FRONT_ENDS
from transformer_jax.models.heads import HEADS
from transformer_jax.objectives import OBJECTIVES
from transformer_jax.runs import load_config, read_experiment
from transformer_jax.runs.folder import check_workdir, store_config

MODULE = """
import dataclasses
from typing import ClassVar
from transformer_jax.models.heads import HEADS
from transformer_jax.objectives import OBJECTIVES, Seq2Seq

@dataclasses.dataclass(frozen=True)
class Retelling(Seq2Seq):
    HEADS: ClassVar[tuple[str, ...]] = ("retold",)
    name: str = "retelling"

MAP = {}

def register():
    OBJECTIVES["retelling"] = Retelling
    HEADS["retold"] = HEADS["tokens"]
"""


@pytest.fixture
def forgotten():
    """Removes what ``register`` adds, as another process would not have it."""

    def forget():
        OBJECTIVES.pop("retelling", None)
        HEADS.pop("retold", None)

    yield forget
    forget()


@pytest.fixture
def experiment(corpus, tmp_path, monkeypatch, forgotten):
    (tmp_path / "retelling.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("retelling")
    module.register()
    tiny = tiny_experiment(corpus, model=dict(head="tokens"))
    made = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, head="retold"),
        objective=module.Retelling(),
        extensions=("retelling:register",),
    )
    forgotten()
    return made


def test_what_it_names_is_there_before_the_sections_are_read(experiment, tmp_path, forgotten):
    assert read_experiment(experiment.to_config_dict()) == experiment
    forgotten()
    store_config(tmp_path, experiment)
    assert load_config(tmp_path) == experiment


def test_without_it_an_unknown_name_is_an_error_that_says_what_to_do(experiment):
    config = experiment.to_config_dict()
    config.extensions = ()
    with pytest.raises(
        ConfigError, match=r"objective\.name='retelling' must be one of .*name its function in"
    ):
        read_experiment(config)
    config.objective = tiny_experiment("nowhere").to_config_dict().objective
    with pytest.raises(ConfigError, match=r"model\.head='retold' is no head.*name .* in config\.extensions"):
        read_experiment(config)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (("nowhere_at_all:register",), r"'nowhere_at_all:register', which cannot be imported: .*PYTHONPATH"),
        (("retelling:registr",), r"'retelling:registr', which cannot be imported: .*no attribute 'registr'"),
        (("retelling",), "'retelling', which cannot be imported"),
        ((".retelling:register",), r"'\.retelling:register', which cannot be imported: .*package\.module"),
        (("retelling:MAP",), "'retelling:MAP', a dict, which cannot be called"),
        ("retelling:register", "must be a tuple of texts, not 'retelling:register'"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_error(experiment, extensions, message):
    config = dataclasses.asdict(experiment) | {"extensions": extensions}
    with pytest.raises(ConfigError, match=rf"config\.extensions .*{message}"):
        read_experiment(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("int('x')", "raised ValueError while it was imported: invalid literal for int"),
        (
            "import no_such_module",
            "raised ModuleNotFoundError while it was imported: No module named 'no_such",
        ),
        ("MODULE.missing", "raised NameError while it was imported: name 'MODULE' is not defined"),
    ],
)
def test_an_error_within_a_module_is_told_as_one(experiment, tmp_path, line, message):
    (tmp_path / "failing.py").write_text(f"# The next line fails.\n{line}\n")
    config = dataclasses.asdict(experiment) | {"extensions": ("failing:register",)}
    with pytest.raises(
        ConfigError, match=rf"'failing:register', whose module {message}.*failing\.py, line 2"
    ):
        read_experiment(config)


def test_a_module_may_move_between_two_parts_of_a_run(experiment, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    store_config(tmp_path, experiment)
    loaded = load_config(tmp_path)
    check_workdir(tmp_path, dataclasses.replace(loaded, extensions=("moved.retelling:register",)))


def test_a_front_end_from_outside_brings_its_own_old_keys_to_date(experiment, tmp_path, monkeypatch):
    (tmp_path / "later.py").write_text(
        "from transformer_jax.models.front_ends import FRONT_ENDS, Tokens\n"
        "class Later(Tokens):\n"
        "    @staticmethod\n"
        "    def upgrade(model):\n"
        "        model['dropout'] = model.pop('old_dropout')\n"
        "def register():\n"
        "    FRONT_ENDS['later'] = Later\n"
    )
    monkeypatch.setitem(FRONT_ENDS, "later", FRONT_ENDS["tokens"])  # so that it is removed after the test
    content = json.loads(json.dumps(dataclasses.asdict(experiment)))
    content["extensions"].append("later:register")
    content["model"]["old_dropout"] = content["model"].pop("dropout")
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(tmp_path).model == experiment.model
