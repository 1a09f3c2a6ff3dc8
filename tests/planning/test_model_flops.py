"""Operations that models need, against published formulas and the products that are compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments import bert_mlm, gpt2_openwebtext, t5_c4, vit_imagenet, wmt14_en_de
from transformer_jax import families
from transformer_jax.config import read_section
from transformer_jax.models import TransformerConfig, abstract_params, build
from transformer_jax.models.front_ends import Patches
from transformer_jax.planning.costs import read_work, total
from transformer_jax.planning.hlo import read_program
from transformer_jax.planning.model_flops import decode_flops, model_flops
from transformer_jax.sharding.partitioning import unbox


def tokens(rows: int, length: int, *sides: str) -> dict[str, jax.ShapeDtypeStruct]:
    return {side: jax.ShapeDtypeStruct((rows, length), jnp.int32) for side in sides}


def test_gpt2_by_the_formula_of_palm() -> None:
    """6 N + 12 L H Q T a token, where almost all of N are matrices."""
    config = families.gpt2.config("xl")
    layers, width, length = 48, 1600, 1024
    matrices = layers * 12 * width**2 + 50_257 * width
    expected = 6 * matrices + 12 * layers * width * length
    assert model_flops(config, tokens(1, length, "inputs")) == expected * length
    parameters = sum(leaf.size for leaf in jax.tree.leaves(unbox(abstract_params(config))))
    assert matrices == pytest.approx(parameters, rel=0.002)


def test_transformer_base_by_hand() -> None:
    """Vaswani et al. 2017, Table 3: d_model 512, d_ff 2048, 8 heads of 64, 6 + 6 layers."""
    config = families.transformer.config("base", vocab_size=37_000)
    encoder = 4 * 512 * 512 + 2 * 512 * 2048
    decoder = 8 * 512 * 512 + 2 * 512 * 2048
    scores = 2 * 512 * 256  # multiplications of a token with 256 others, and of their weights
    forward = 6 * (encoder + scores) + 6 * (decoder + 2 * scores) + 512 * 37_000
    batch = tokens(32, 256, "inputs", "targets")
    assert model_flops(config, batch) == 3 * 2 * forward * 32 * 256
    assert model_flops(config, batch, train=False) == 2 * forward * 32 * 256


def test_vit_by_hand() -> None:
    config = families.vit.config("L/16", num_labels=1000)
    layer = 196 * 0 + 197 * (12 * 1024**2 + 2 * 1024 * 197)
    forward = 24 * layer + 196 * 16 * 16 * 3 * 1024 + 1024 * 1000
    images = {"images": jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.uint8)}
    assert model_flops(config, images) == 3 * 2 * forward * 8


CONFIGS = {
    "transformer": wmt14_en_de.get_config("base"),
    "gpt2": gpt2_openwebtext.get_config("small"),
    "t5": t5_c4.get_config(),
    "bert": bert_mlm.get_config(),
    "vit": vit_imagenet.get_config(),
}


def small(config: Any) -> TransformerConfig:
    """The experiment's model, so small that it compiles at once, without what is drawn."""
    model = read_section(TransformerConfig, config.model, "model")
    sizes: dict[str, Any] = dict(d_model=48, num_heads=4, key_size=12, value_size=12, d_feedforward=96)
    sizes |= {"num_encoder_layers": min(2, model.num_encoder_layers), "dtype": "float32"}
    sizes |= {"num_decoder_layers": min(2, model.num_decoder_layers)}
    if isinstance(model.front_end, Patches):
        front_end = Patches(image_shape=(32, 32, 3), patch_size=8)
        sizes |= {"front_end": front_end, "max_length": 17, "num_labels": 10}
    else:
        sizes |= {"vocab_size": 200, "max_length": 64, "pad_id": 0, "eos_id": 1, "decoder_start_id": 1}
    return dataclasses.replace(model, **sizes)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_products_are_those_that_are_compiled(name: str) -> None:
    config = small(CONFIGS[name])
    sides = ("inputs",) if config.is_decoder_only or config.is_encoder_only else ("inputs", "targets")
    arguments: dict[str, jax.ShapeDtypeStruct] = tokens(3, 16, *sides)
    if config.front_end.FEATURE == "images":
        arguments = {"images": jax.ShapeDtypeStruct((3, *config.front_end.input_shape), jnp.float32)}
    params = unbox(abstract_params(config))
    apply = jax.jit(lambda params, arguments: build(config).apply({"params": params}, **arguments))
    program = read_program(apply.lower(params, arguments).compile().as_text())
    compiled = sum(total(read_work(program)).product_flops.values())
    assert compiled == pytest.approx(model_flops(config, arguments, train=False), rel=0.01)


def test_a_decoding_step_by_hand() -> None:
    config = families.transformer.config("base", vocab_size=37_000)
    layer = 4 * 512**2 + 2 * 512 * 2048 + 2 * 512 * 100 + 2 * 512**2 + 2 * 512 * 80
    assert decode_flops(config, 7, 80, 100) == 2 * 7 * (6 * layer + 512 * 37_000)
