"""Which program computes an attention, and that a model is the same with each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny_experiment
from transformer_jax.layers import attention_kernels
from transformer_jax.layers.attention import KeyValue, MultiHeadAttention
from transformer_jax.layers.attention_kernels import choose_kernel
from transformer_jax.layers.masks import Mask
from transformer_jax.models import build
from transformer_jax.partitioning import MeshConfig, make_mesh, on_mesh, shard_batch
from transformer_jax.placement import Attention, Placement, placed
from transformer_jax.train_step import compile_train_step


def arrays(length: int = 256, keys: int = 256, size: int = 64, dtype: str = "bfloat16") -> list[jax.Array]:
    return [jnp.zeros((2, n, 2, size), dtype) for n in (length, keys, keys)]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The name of what is chosen for a model on one device of a platform."""

    def choice(platform: str, *tensors: jax.Array, asked: Attention = "auto", obstacle: str = "") -> str:
        monkeypatch.setattr(attention_kernels, "target_platform", lambda: platform)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with placed(Placement(mesh, {}, asked)):
            kernel = choose_kernel(*(tensors or arrays()), Mask(), obstacle=obstacle, name="attention")
        return "plain" if kernel is None else kernel.func.__name__

    attention_kernels._say_plain.cache_clear()
    return choice


def test_each_platform_has_its_kernel(choose: Callable[..., str]) -> None:
    assert choose("tpu") == "splash_attention"
    assert choose("gpu") == "triton_attention"  # for want of cuDNN here
    assert choose("cpu") == "plain"
    assert choose("METAL") == "plain"
    assert choose("tpu", asked="plain") == "plain"
    assert choose("cpu", asked="splash") == "splash_attention"


def test_what_stands_in_the_way_is_said_once(
    choose: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert choose("tpu", *arrays(64, 100)) == "plain"
        assert choose("tpu", *arrays(32, 32)) == "plain"
        assert choose("tpu", obstacle="it is Tuesday") == "plain"
        assert choose("gpu", *arrays(size=80)) == "plain"
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:2] == [
        "attention is plain XLA on this TPU: of so few tokens a kernel computes more than 1.5 scores for "
        "each that is needed",
        "attention is plain XLA on this TPU: it is Tuesday",
    ]
    assert len(messages) == 3
    assert "cuDNN is not detected" in messages[2]
    assert "heads of 16, 32, 64 or 128, not of 80" in messages[2]


def test_a_cpu_says_nothing(choose: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    assert choose("cpu", obstacle="it is Tuesday") == "plain"
    assert not caplog.records


def test_a_kernel_that_is_asked_for_and_will_not_do_is_an_error(choose: Callable[..., str]) -> None:
    with pytest.raises(
        ValueError, match=r"mesh.attention='splash' will not do .* a GPU has cudnn and triton"
    ):
        choose("gpu", asked="splash")
    with pytest.raises(ValueError, match=r"attention_dropout=0.1 needs .* 'auto' or 'plain' will"):
        choose("tpu", asked="splash", obstacle="attention_dropout=0.1 needs the weights")
    with pytest.raises(ValueError, match="cuDNN"):
        choose("cpu", asked="cudnn")
    # But one that merely does too much is what was asked for.
    assert choose("tpu", *arrays(64, 64), asked="splash") == "splash_attention"


def test_several_devices_need_a_placement(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention_kernels, "target_platform", lambda: "tpu")
    attention_kernels._say_plain.cache_clear()
    assert choose_kernel(*arrays(), Mask(), obstacle="", name="attention") is None
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
        use_bias=True,
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
    cached = {"cache": cache, "positions": jnp.zeros((), jnp.int32), "mask": Mask(causal=True)}
    assert "pallas_call" not in traced(attention(), **cached)
    with pytest.raises(ValueError, match=r"attention_dropout=0.5 needs the weights"):
        traced(attention(dropout=0.5), train=True)
    with pytest.raises(ValueError, match="a bias of positions is added to the scores"):
        traced(attention(), bias=jnp.zeros((1, 2, 4, 4)))


def test_messages_name_an_attention_without_its_layer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    attention_kernels._say_plain.cache_clear()
    monkeypatch.setattr(attention_kernels, "target_platform", lambda: "tpu")
    model = build(
        dataclasses.replace(tiny_experiment(tmp_path).model, num_encoder_layers=2, num_decoder_layers=2)
    )
    tokens = jnp.ones((2, 8), jnp.int32)
    variables = model.init(jax.random.key(0), tokens, tokens)
    call = on_mesh(lambda variables: model.apply(variables, tokens, tokens), make_mesh(MeshConfig()))
    jax.eval_shape(call, {"params": variables["params"]})
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
        ("splash", {"scan_layers": True, "remat": True, "remat_keeps": "products"}),
        ("triton", {"remat": True, "remat_keeps": "products"}),
    ],
)
def test_a_training_step_is_the_same_with_a_kernel(
    kernel: Attention, form: dict, rng: np.random.Generator, tmp_path: Any
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
