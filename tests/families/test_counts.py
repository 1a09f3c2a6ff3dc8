"""Published parameter counts of every variant of every family, without making a parameter."""

import dataclasses

import jax
import pytest

from transformer_jax import families
from transformer_jax.config import ConfigError
from transformer_jax.families import FAMILIES
from transformer_jax.models import abstract_params

# What transformers' ``num_parameters`` gives for the released checkpoints (of BERT and RoBERTa for the models
# with their poolers; of "tiny" RoBERTa and DistilBERT for these sizes), and for ViT what timm and the papers'
# authors give, with 1,000 classes.
PUBLISHED = {
    "bert": {
        "tiny": 4_385_920,
        "mini": 11_170_560,
        "small": 28_763_648,
        "medium": 41_373_184,
        "base": 109_482_240,
        "large": 335_141_888,
        "minilm": 22_713_216,
    },
    "roberta": {
        "tiny": 6_913_152,
        "distilroberta": 82_118_400,
        "base": 124_645_632,
        "large": 355_359_744,
        "xlm_roberta_base": 278_043_648,
        "xlm_roberta_large": 559_890_432,
    },
    "distilbert": {"tiny": 4_369_152, "base": 66_362_880, "multilingual": 134_734_080},
    "gpt2": {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200},
    "t5": {
        "small": 60_506_624,
        "base": 222_903_552,
        "large": 737_668_096,
        "3b": 2_851_598_336,
        "11b": 11_307_321_344,
        "1.1-small": 76_961_152,
        "1.1-base": 247_577_856,
        "1.1-large": 783_150_080,
        "1.1-xl": 2_849_757_184,
        "1.1-xxl": 11_135_332_352,
    },
    "t5_encoder": {
        "small": 35_330_816,
        "base": 109_628_544,
        "large": 334_939_648,
        "3b": 1_240_909_824,
        "11b": 4_864_791_552,
        "1.1-small": 35_332_800,
        "1.1-base": 109_628_544,
        "1.1-large": 341_231_104,
        "1.1-xl": 1_223_527_424,
        "1.1-xxl": 4_762_310_656,
        "mt5-small": 146_940_608,
        "mt5-base": 277_040_256,
        "mt5-large": 564_446_720,
        "mt5-xl": 1_669_958_656,
        "mt5-xxl": 5_655_173_120,
    },
    "bart": {"base": 139_420_416, "large": 406_291_456},
    "vit": {
        "Ti/16": 5_717_416,
        "S/16": 22_050_664,
        "S/32": 22_878_952,
        "B/16": 86_567_656,
        "B/32": 88_224_232,
        "L/16": 304_326_632,
        "L/32": 306_535_400,
        "H/14": 632_045_800,
    },
    "marian": {"opus-mt": 74_410_496},
}
HEADS = {"bert": dict(head="pooled"), "roberta": dict(head="pooled"), "distilbert": dict(head="none")}


def count(config):
    # Scanned layers have as many parameters (``test_transformer`` shows it), and are traced once.
    config = dataclasses.replace(config, scan_layers=True)
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def uncounted(config):
    """Parameters of ours that the published number leaves out, less those of theirs that we do not have."""
    if config.positions == "sinusoidal_halves":
        # A bias of the logits, where theirs is a buffer; sinusoids that theirs counts, of both sides.
        return config.vocab_size - 2 * config.max_length * config.d_model
    if config.logits_bias and not config.is_encoder_only:
        return config.vocab_size - 2 * 2 * config.d_model  # and BART's two unread rows of positions, twice
    return 0


CASES = [
    (name, variant)
    for name, family in FAMILIES.items()
    if name != "transformer"
    for variant in family.variants
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_parameter_count(name, variant):
    config = getattr(families, name).config(variant, **HEADS.get(name, {}))
    assert FAMILIES[name].has(config)
    if name == "vit" and variant not in PUBLISHED["vit"]:
        # Unpublished combinations: from one of the same size, patches and positions counted by hand.
        size, patch = variant.split("/")
        other = next(known for known in PUBLISHED["vit"] if known.startswith(f"{size}/"))
        base = families.vit.config(other)
        published = PUBLISHED["vit"][other]
        published += 3 * config.d_model * (int(patch) ** 2 - base.front_end.patch_size**2)
        published += config.d_model * ((224 // int(patch)) ** 2 - (224 // base.front_end.patch_size) ** 2)
    else:
        published = PUBLISHED[name][variant]  # a variant without an expected count fails here
    assert count(config) == published + uncounted(config)


# What ``num_parameters`` gives for the classes with these heads, of bert-base-uncased.
BERT_HEADS = {"masked_tokens": 109_514_298, "pretraining": 110_106_428, "next_sentence": 109_483_778}


@pytest.mark.parametrize("head", BERT_HEADS)
def test_parameter_count_with_a_head(head):
    assert count(families.bert.config("base", head=head)) == BERT_HEADS[head]


def test_a_config_is_of_one_family_that_has_a_checkpoint():
    for name, variant in CASES:
        config = getattr(families, name).config(variant)
        assert [f.name for f in FAMILIES.values() if f.checkpoint and f.has(config)] == [name]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "transformer"])
def test_unknown_variants_and_fields_are_named(name):
    module = getattr(families, name)
    variant = next(iter(module.VARIANTS))
    with pytest.raises(ConfigError, match=rf"'bose' of the family {name}; there are {variant}"):
        module.config("bose")
    with pytest.raises(ConfigError, match=r"no field num_head: .*num_heads"):
        module.config(variant, num_head=3)
