"""Which program computes an attention, and that a model is the same with each."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_training import tiny_experiment
from transformer_jax.layers import attention_kernels
from transformer_jax.layers.attention import KeyValue, MultiHeadAttention
from transformer_jax.layers.attention_kernels import choose_kernel
from transformer_jax.layers.kernel import Kernel
from transformer_jax.layers.masks import Causal, Explicit, Globals, Mask, MaskPart, Segments, Window
from transformer_jax.models import build
from transformer_jax.sharding.partitioning import MeshConfig, make_mesh, on_mesh, shard_batch
from transformer_jax.sharding.placement import Placement, placed
from transformer_jax.training.step import compile_train_step


def arrays(length: int = 256, keys: int = 256, size: int = 64, dtype: str = "bfloat16") -> list[jax.Array]:
    return [jnp.zeros((2, n, 2, size), dtype) for n in (length, keys, keys)]


NUMBERS = itertools.count()


@pytest.fixture
def name() -> str:
    """A name of an attention that has not been logged yet, because a reason is logged once for each name."""
    return f"attention_{next(NUMBERS)}"


@pytest.fixture
def choose(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The name of what is chosen for a model on one device of a platform."""

    def choice(
        platform: str,
        *tensors: jax.Array,
        asked: str = "auto",
        mask: Mask | None = None,
        **options: Any,
    ) -> str:
        monkeypatch.setattr(attention_kernels, "target_platform", lambda: platform)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with placed(Placement(mesh, {}, asked)):
            chosen = choose_kernel(*(tensors or arrays()), mask or Mask(), **options, name=name)
        return "plain" if chosen is None else chosen.NAME

    return choice


def test_each_platform_has_its_kernel(choose: Callable[..., str]) -> None:
    assert choose("tpu") == "splash"
    assert choose("gpu") == "triton"  # for want of cuDNN here
    assert choose("cpu") == "plain"
    assert choose("METAL") == "plain"
    assert choose("tpu", asked="plain") == "plain"
    assert choose("cpu", asked="splash") == "splash"


def test_what_stands_in_the_way_is_said_once(
    choose: Callable[..., str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert choose("tpu", *arrays(64, 100)) == "plain"
        assert choose("tpu", *arrays(32, 32)) == "plain"
        assert choose("tpu", needs_weights="attention_dropout=0.1") == "plain"
        assert choose("gpu", *arrays(size=80)) == "plain"
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:2] == [
        f"{name} is plain XLA on this TPU: of so few tokens a kernel computes more than 1.5 scores for "
        "each that is needed",
        f"{name} is plain XLA on this TPU: attention_dropout=0.1 needs the attention weights, which a "
        "kernel does not store",
    ]
    assert len(messages) == 3
    assert "cuDNN is not detected" in messages[2]
    assert "heads of 16, 32, 64 or 128, not of 80" in messages[2]


def test_a_cpu_says_nothing(choose: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    assert choose("cpu", needs_weights="attention_dropout=0.1") == "plain"
    assert not caplog.records


def test_a_kernel_that_is_asked_for_and_will_not_do_is_an_error(choose: Callable[..., str]) -> None:
    with pytest.raises(
        ValueError, match=r"mesh.attention='splash' cannot compute .* a GPU has cudnn and triton"
    ):
        choose("gpu", asked="splash")
    with pytest.raises(
        ValueError, match=r"attention_dropout=0.1 needs .* use mesh.attention='auto' or 'plain'"
    ):
        choose("tpu", asked="splash", needs_weights="attention_dropout=0.1")
    with pytest.raises(ValueError, match="cuDNN"):
        choose("cpu", asked="cudnn")
    # But one that merely does too much is what was asked for.
    assert choose("tpu", *arrays(64, 64), asked="splash") == "splash"


@flax.struct.dataclass
class EverySecond(MaskPart):
    """A part that no kernel knows: keys at even positions."""

    def to_array(self, query_length: int, key_length: int) -> jax.Array:
        return (jnp.arange(key_length) % 2 == 0)[None, None, None, :]


@flax.struct.dataclass
class StrictlyCausal(Causal):
    """A part that kernels would take for a causal one if they looked at its base class."""

    def to_array(self, query_length: int, key_length: int) -> jax.Array:
        return jnp.tri(query_length, key_length, -1, bool)[None, None]


GLOBALS = jnp.zeros((2, 256), bool)
UNKNOWN = [
    (EverySecond(), "EverySecond"),
    (StrictlyCausal(), "StrictlyCausal"),
    (Window(4, 4), "Window"),
    (Globals(GLOBALS, GLOBALS), "Globals"),
    (Explicit(jnp.ones((1, 1, 256, 256), bool)), "Explicit"),
    (Causal(jnp.ones((), jnp.int32)), "Causal with an offset"),
    (Causal(3), "Causal with an offset"),
]


@pytest.mark.parametrize(
    ("part", "words"), UNKNOWN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_kernel_is_given_a_mask_part_that_it_cannot_express(
    part: MaskPart, words: str, choose: Callable[..., str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mask = Mask(Segments(None, jnp.ones((2, 256), jnp.int32)), part)
    assert choose("tpu", mask=mask) == "plain"
    assert choose("gpu", mask=mask) == "plain"
    for_tpu, for_gpu = (record.getMessage() for record in caplog.records)
    assert for_tpu == f"{name} is plain XLA on this TPU: splash cannot express the mask part {words}"
    assert f"triton cannot express the mask part {words}" in for_gpu
    for kernel_name, kernel in attention_kernels.KERNELS.items():
        with pytest.raises(
            ValueError, match=f"mesh.attention='{kernel_name}' .* cannot express the mask part {words}"
        ):
            choose("cpu", asked=kernel_name, mask=mask)
        with pytest.raises(
            ValueError, match=f"{kernel_name} cannot express the mask part {words}.* plain attention"
        ):
            kernel(*arrays(), mask=mask)


def test_kernels_take_what_they_express_once(choose: Callable[..., str]) -> None:
    segments = Segments(None, jnp.ones((2, 256), jnp.int32))
    assert choose("tpu", mask=Mask(Causal(), segments)) == "splash"
    assert choose("tpu", mask=Mask(Causal(0), segments)) == "splash"
    assert choose("tpu", mask=Mask(segments, segments)) == "plain"


def test_a_mask_that_goes_through_jit_keeps_its_kernel(choose: Callable[..., str]) -> None:
    names = []
    segments = Segments(None, jnp.ones((2, 256), jnp.int32))
    jax.eval_shape(lambda mask: names.append(choose("tpu", mask=mask)), Mask(Causal(), segments))
    assert names == ["splash"]


class EvenKeys(Kernel):
    """A kernel from outside of the library, for a mask part from outside of it."""

    NAME = "even"
    PLATFORMS = frozenset({"METAL"})
    EXPRESSES = frozenset({EverySecond})

    def attend(self, query, key, value, *, mask, scale, interpret):
        raise NotImplementedError


def test_a_kernel_is_added_by_an_entry(choose: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention_kernels.KERNELS, "even", EvenKeys())
    assert choose("METAL", mask=Mask(EverySecond())) == "even"
    assert choose("METAL", mask=Mask(Causal())) == "plain"
    assert choose("cpu", asked="even", mask=Mask(EverySecond())) == "even"
    assert choose("tpu", mask=Mask()) == "splash"
    with pytest.raises(ValueError, match="a TPU has splash"):
        choose("tpu", asked="even")


def test_an_unknown_kernel_is_an_error(choose: Callable[..., str], tmp_path: Any) -> None:
    message = "mesh.attention='flash' is unknown; use one of 'auto', 'plain', 'splash', 'cudnn', 'triton'"
    with pytest.raises(ValueError, match=message):
        choose("cpu", asked="flash")
    experiment = tiny_experiment(tmp_path)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment, mesh=MeshConfig(attention="flash"))


def test_several_devices_need_a_placement(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention_kernels, "target_platform", lambda: "tpu")
    assert choose_kernel(*arrays(), Mask(), name=name) is None
    assert "may be split over 8 devices" in caplog.text


def test_the_platform_is_that_of_the_placement_or_of_the_default_device() -> None:
    assert attention_kernels.target_platform() == "cpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert attention_kernels.target_platform() == "cpu"
    with placed(Placement(make_mesh(MeshConfig()), {})):
        assert attention_kernels.target_platform() == "cpu"


def attention(**fields: Any) -> MultiHeadAttention:
    fields = {"dropout": 0.0, **fields}
    return MultiHeadAttention(
        d_model=32,
        num_heads=2,
        key_size=16,
        value_size=16,
        biases=("query", "key", "value", "output"),
        dtype=jnp.dtype("float32"),
        **fields,
    )


def traced(module: MultiHeadAttention, **options: Any) -> str:
    """The program of a call within a placement that asks for the splash kernel."""
    x = jnp.ones((2, 4, 32))
    options = {"mask": Mask(), "train": False, **options}
    mutable = options.pop("mutable", False)
    variables = module.init(jax.random.key(0), x, mask=Mask(), train=False)

    def call(variables: Any) -> Any:
        return module.apply(
            {"params": variables["params"]},
            x,
            **options,
            mutable=mutable,
            rngs={"dropout": jax.random.key(1)},
        )

    on_one = on_mesh(call, make_mesh(MeshConfig(), jax.devices()[:1]), attention="splash")
    return str(jax.make_jaxpr(on_one)(variables))


def test_attention_calls_the_kernel_unless_its_weights_or_a_cache_are_needed() -> None:
    assert "pallas_call" in traced(attention())
    assert "pallas_call" in traced(attention(dropout=0.5))
    assert "pallas_call" not in traced(attention(), mutable=["intermediates"])
    cache = KeyValue(jnp.zeros((2, 8, 2, 16)), jnp.zeros((2, 8, 2, 16)))
    cached = {"cache": cache, "position": jnp.zeros((), jnp.int32), "mask": Mask(Causal())}
    assert "pallas_call" not in traced(attention(), **cached)
    with pytest.raises(ValueError, match=r"attention_dropout=0.5 needs the attention weights"):
        traced(attention(dropout=0.5), train=True)
    with pytest.raises(ValueError, match="a bias is added to the scores"):
        traced(attention(), bias=jnp.zeros((1, 2, 4, 4)))


def test_plain_attention_computes_a_mask_part_from_outside() -> None:
    module, x = attention(), jax.random.normal(jax.random.key(2), (2, 4, 32))
    variables = module.init(jax.random.key(0), x, mask=Mask(), train=False)
    found, _ = module.apply(variables, x, mask=Mask(Causal(), EverySecond()), train=False)
    # Queries 0 and 1 attend to key 0 alone, queries 2 and 3 to keys 0 and 2.
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)
    few, _ = module.apply(variables, x[:, 2:4], x[:, ::2], mask=Mask(), train=False)
    np.testing.assert_allclose(found[:, 2:], few, atol=1e-6)
    with pytest.raises(ValueError, match=r"'splash' cannot compute .* the mask part EverySecond"):
        traced(module, mask=Mask(EverySecond()))


def test_messages_name_an_attention_without_its_layer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(attention_kernels, "target_platform", lambda: "tpu")
    # A rate that no other test has, because a reason is logged once for each name.
    layers = dict(num_encoder_layers=2, num_decoder_layers=2, attention_dropout=0.123)
    model = build(dataclasses.replace(tiny_experiment(tmp_path).model, **layers))
    tokens = jnp.ones((2, 8), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    keys = {"dropout": jax.random.key(0)}

    def call(params: Any) -> Any:
        return model.apply({"params": params}, tokens, tokens, train=True, rngs=keys)

    jax.eval_shape(on_mesh(call, make_mesh(MeshConfig())), variables["params"])
    said = sorted(record.getMessage().split(" is plain")[0] for record in caplog.records)
    assert said == ["decoder/context_attention", "decoder/self_attention", "encoder/self_attention"]


def step(
    folder: Any, mesh: MeshConfig, batch: Mapping[str, np.ndarray], **model: Any
) -> tuple[dict[str, Any], Any]:
    """Sums of a training step, and the state after it."""
    changes = {"attention_dropout": 0.0, **model}
    experiment = tiny_experiment(folder, model=changes, data={"tokens_per_batch": 320})
    experiment = dataclasses.replace(experiment, mesh=mesh)
    devices = make_mesh(mesh)
    _, init, update = compile_train_step(experiment, devices)
    state, sums = update(init(), shard_batch(devices, batch))
    return jax.device_get((sums, state.params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "form"),
    [
        ("splash", {"scan_layers": True, "remat": True}),
        pytest.param(
            "splash",
            {"scan_layers": True, "remat": True, "remat_keeps": "products"},
            marks=pytest.mark.everything,
        ),
        ("triton", {"remat": True, "remat_keeps": "products"}),
    ],
)
def test_a_training_step_is_the_same_with_a_kernel(
    kernel: str, form: dict, rng: np.random.Generator, tmp_path: Any
) -> None:
    rows, length = 8, 40
    batch = {}
    for side in ("inputs", "targets"):
        lengths = rng.integers(10, length, (rows, 1))
        is_real = np.arange(length)[None] < lengths
        batch[side] = np.where(is_real, rng.integers(4, 260, (rows, length)), 0).astype(np.int32)
        batch[f"{side}_segments"] = is_real.astype(np.int32)
        batch[f"{side}_positions"] = np.where(is_real, np.arange(length)[None], 0).astype(np.int32)
    sizes = {"key_size": 16, "value_size": 16, **form}
    split = MeshConfig(data=2, context=2, tensor=2)
    wanted, params = step(tmp_path, dataclasses.replace(split, attention="plain"), batch, **sizes)
    found, others = step(tmp_path, dataclasses.replace(split, attention=kernel), batch, **sizes)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, err_msg=name)
    # Adam's first step is the sign of the gradient times the rate: no test of small gradients, one of all.
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-4), others, params)
