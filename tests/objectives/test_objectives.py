"""What holds for every objective there is."""

import dataclasses

import pytest

from transformer_jax.config import read_section
from transformer_jax.objectives import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_config_section_under_its_name(name):
    objective = OBJECTIVES[name]()
    assert objective.name == name
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(objective).items()}
    assert read_section(OBJECTIVES[name], plain, "objective") == objective
    assert set(objective.HIGHER_IS_BETTER) < set(objective.METRICS)
