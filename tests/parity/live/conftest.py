"""What the live tests run beside the library, imported when asked for: `make test` reads these files."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def transformers():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def load(transformers):
    """Reads a folder with the class that its model must have; nothing may be missing or left over."""

    def load(folder, architecture):
        model, found = getattr(transformers, architecture).from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True, use_safetensors=True
        )
        assert {kind: keys for kind, keys in found.items() if keys} == {}
        return model.eval()

    return load


@pytest.fixture(scope="session")
def run():
    """Outputs by name of a model of theirs, for NumPy arguments."""
    import torch

    def run(model, arguments):
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in arguments.items()}
        tensors = {name: t.long() if t.dtype == torch.int32 else t for name, t in tensors.items()}
        with torch.no_grad():
            outputs = model(**tensors)
        return {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}

    return run
