"""Sets up JAX, before anything imports it, the way every test expects it.

Eight virtual CPU devices, the typed signatures of ``transformer_jax`` checked at every call, and no
silent broadcasting between arrays of different rank. A test that starts a process passes on what
is set in ``os.environ`` here, so its child sees eight devices too, unless it is given
``single_device_environment``.
"""

import functools
import gc
import os
import pathlib
import shutil
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_flags = os.environ.get("XLA_FLAGS", "").split()
_ENVIRONMENT_BEFORE = dict(os.environ)
if not any(flag.startswith(_DEVICES_FLAG + "=") for flag in _flags):
    _flags_of_tests = [*_flags, f"{_DEVICES_FLAG}=8"]
    _major, _minor = map(int, version("jaxlib").split(".")[:2])
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") and (_major, _minor) < (0, 11):
        # The older way of compiling what is fused takes two thirds of the time; XLA stops at unknown flags.
        _flags_of_tests.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(_flags_of_tests)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Devices wait for one another in threads of one pool, which has hardly more than there are cores: with two,
# some would wait for ever for others that have no thread left.
os.environ.setdefault("PJRT_NPROC", "64")
# Hundreds of tests compile the same few programs, in several processes. The processes of one call of pytest
# share what they compile, in a folder of their own: yesterday's programs would not test today's library.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-by-tests-")
_COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
    # Programs without optimizations compile about as fast as they are stored.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS")
    else "0.2",
}
os.environ.update(_COMPILED)

# Traced programs are many objects that stay, and looking through them for garbage took a tenth of the time.
gc.set_threshold(100_000, 20, 100)

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped


def _quickly_checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As ``jaxtyping.jaxtyped``, without what took a quarter of the time of the fast tests.

    A function without arrays in its signature has no shapes to compare. The checks of a function defined
    inside another would be made anew at every call of the other; only EVERYTHING=1 makes them.
    """
    check = _jaxtyped(typechecker=typechecker)

    def checked(item: Any) -> Any:
        if not isinstance(item, types.FunctionType):
            return check(item)
        if "<locals>" in item.__qualname__ and not os.environ.get("EVERYTHING"):
            return item
        try:
            hints = typing.get_type_hints(item)
        except NameError:  # imported for static checks only: jaxtyping accepts any value
            return check(item)
        if "jaxtyping" in repr(hints):
            return check(item)
        only_typed = typechecker(item)

        @functools.wraps(item)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (item if jaxtyping.config.jaxtyping_disable else only_typed)(*args, **kwargs)

        return call

    return checked


# Must come before the first import of transformer_jax in any test module.
jaxtyping.jaxtyped = _quickly_checked  # the import hook looks it up at every definition
jaxtyping.install_import_hook("transformer_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--marked", metavar="MARKER", help="leave out files that never mention pytest.mark.MARKER"
    )


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Leaves out files without a test of ``--marked``: importing them takes longer than a smoke list."""
    marker = config.getoption("--marked")
    if marker and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return True if f"pytest.mark.{marker}" not in collection_path.read_text() else None
    return None


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(_COMPILED["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator that is the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    """A JAX random key that is the same in every run."""
    return jax.random.key(0)


@pytest.fixture
def quickly_compiled() -> Iterator[None]:
    """Without most of XLA's optimizations, which take longer than a program that runs a few times."""
    from tests.compilations import optimizations

    with optimizations(False):
        yield


@pytest.fixture
def one_device() -> Iterator[None]:
    """As ``on_one_device``, for tests that train where a mesh is not the point."""
    from tests.compilations import on_one_device

    with on_one_device():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder with the texts that ``tests.tiny_training.tiny_experiment`` trains on."""
    # Here, because pytest-xdist's parent loads this file too, and needs no library.
    from tests.tiny_training import write_corpus

    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def single_device_environment() -> dict[str, str]:
    """The environment for a child process that is to see one CPU device, as a user's run does."""
    environment = _ENVIRONMENT_BEFORE | _COMPILED
    # Otherwise as here, or the last bits of its results would differ from those of the tests.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(_DEVICES_FLAG + "=")]
    environment["XLA_FLAGS"] = " ".join(flags)
    environment["JAX_PLATFORMS"] = "cpu"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a limit on file sizes would cut it, for every later import
    return environment
