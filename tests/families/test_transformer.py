"""Published parameter counts of every variant, exactly, without making a parameter."""

import jax
import pytest

from transformer_jax.config import ConfigError
from transformer_jax.families import transformer
from transformer_jax.models import abstract_params

# The exact number of a variant with the paper's 37,000 tokens, the shared embedding counted once, and the
# millions that the paper's Table 3 gives (of base where it leaves the column empty).
COUNTS = {
    "tiny": (5_658_624, None),
    "base": (63_045_632, 65),
    "big": (214_171_648, 213),
    "A-heads-1": (63_045_632, 65),
    "A-heads-4": (63_045_632, 65),
    "A-heads-16": (63_045_632, 65),
    "A-heads-32": (63_045_632, 65),
    "B-key-16": (55_967_744, 58),
    "B-key-32": (58_327_040, 60),
    "C-layers-2": (33_644_544, 36),
    "C-layers-4": (48_345_088, 50),
    "C-layers-8": (77_746_176, 80),
    "C-model-256": (26_816_512, 28),
    "C-model-1024": (163_815_424, 168),
    "C-feedforward-1024": (50_450_432, 53),
    "C-feedforward-4096": (88_236_032, 90),
    "D-dropout-0.0": (63_045_632, 65),
    "D-dropout-0.2": (63_045_632, 65),
    "D-smoothing-0.0": (63_045_632, 65),
    "D-smoothing-0.2": (63_045_632, 65),
    "E-learned-positions": (63_569_920, 65),
}


# For every change: one row of Table 3 for each thing that changes a count. The others have the parameters of
# "base", or another value of the same size.
CHOSEN = (
    "tiny", "base", "big", "A-heads-1", "B-key-16", "C-layers-2", "C-feedforward-1024", "E-learned-positions"
)  # fmt: skip


def by_hand(variant):
    """The count from the paper's formulas alone."""
    c = transformer.config(variant)
    attention = c.num_heads * c.d_model * 2 * (c.key_size + c.value_size)
    feed_forward = 2 * c.d_model * c.d_feedforward + c.d_feedforward + c.d_model
    norm = 2 * c.d_model
    encoder = c.num_encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = c.num_decoder_layers * (2 * attention + feed_forward + 3 * norm)
    positions = 2 * c.max_length * c.d_model if c.positions == "learned" else 0
    return c.vocab_size * c.d_model + encoder + decoder + positions


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.everything] * (name not in CHOSEN))
        for name in transformer.VARIANTS
    ],
)
def test_parameter_count(variant):
    exact, published_millions = COUNTS[variant]  # a variant without an expected count fails here
    # Scanned layers have as many parameters (the next test shows it), and are traced once.
    shapes = abstract_params(transformer.config(variant, scan_layers=variant != "base"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == exact == by_hand(variant)
    if published_millions is not None:
        # Table 3 agrees with a vocabulary of about 41,000 (4,000 rows of d_model more than "about 37,000"),
        # which is at most 6.6 % of a variant; a layer too many or few would be more.
        assert exact / 1e6 == pytest.approx(published_millions, rel=0.066)


def test_scanning_and_unsharing_change_the_count_as_they_should():
    def count(**changes):
        small = dict(vocab_size=1000, num_encoder_layers=2, num_decoder_layers=3)
        shapes = abstract_params(transformer.config("base", **small, **changes))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(scan_layers=True) == count()
    assert count(share_embeddings="target") == count() + 1000 * 512
    assert count(share_embeddings="none") == count() + 2 * 1000 * 512


def test_unknown_variants_and_fields_are_named():
    with pytest.raises(ConfigError, match=r"'bose'.*base"):
        transformer.config("bose")
    with pytest.raises(ConfigError, match=r"no field num_head: .*num_heads"):
        transformer.config("base", num_head=3)


def test_label_smoothing_is_of_rows_that_there_are():
    assert set(transformer.LABEL_SMOOTHING) == {name for name in transformer.VARIANTS if "smoothing" in name}
