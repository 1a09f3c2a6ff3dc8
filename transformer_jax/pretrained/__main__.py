"""Compares a checkpoint here with the same checkpoint in Hugging Face transformers.

    python -m transformer_jax.pretrained verify FOLDER

Both implementations get the same random input; the program prints by how much each output differs. The exit
status is 0 if no difference is above --tolerance, 1 if one is, and 2 if they cannot be compared. It needs
PyTorch and transformers: pip install '.[parity]'
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from transformer_jax.cli.process import prepare_process
from transformer_jax.pretrained import verify
from transformer_jax.pretrained.hub import open_checkpoint
from transformer_jax.pretrained.reading import read_model


def main(argv: Sequence[str]) -> None:
    """Runs the program ``verify FOLDER``."""
    if len(argv) != 3 or argv[1] != "verify":
        raise app.UsageError(
            "usage: python -m transformer_jax.pretrained verify FOLDER (python -m transformer_jax.export "
            "writes such a folder for a run)",
            exitcode=2,
        )
    prepare_process()
    try:
        folder = open_checkpoint(argv[2])
        ours = read_model(folder)
        compared = verify.compare(folder, ours.config, ours.params, tolerance=flags.FLAGS.tolerance)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(verify.table(compared))
    sys.exit(not all(one.is_same for one in compared))


def define_flags() -> None:
    """Defines the flags of ``main``."""
    flags.DEFINE_float(
        "tolerance",
        verify.TOLERANCE,
        "Largest absolute difference at which two outputs count as equal. A model with large outputs, which "
        "the table shows, may need a larger tolerance.",
        lower_bound=0.0,
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
