"""Writes the parity fixtures: tiny random Hugging Face models and what PyTorch makes of them.

    python -m tests.parity.make_fixtures OUTPUT_FOLDER [--only NAME]

Needs torch and transformers (`make parity` has an environment with them) and nothing of transformer_jax. Each
model of ``tiny_models.TINY_MODELS`` becomes one folder:

* ``config.json`` and ``model.safetensors``, as ``save_pretrained`` writes them. T5 v1.1 has beside them
  ``config_published.json``: transformers 5 writes ``tie_word_embeddings: true`` and says by
  ``scale_decoder_outputs: false`` what the published config says by ``tie_word_embeddings: false``.
* ``expected.npz``. Token ids, masks and lengths are int32, the rest is float32:

  - the arguments of the forward pass by their names (``input_ids``, ``attention_mask``, ``token_type_ids``,
    ``decoder_input_ids``, ``decoder_attention_mask``, ``pixel_values``), padded on the right;
  - the outputs by their names: ``logits``, or what ``TinyModel.outputs`` has; of an encoder-decoder also
    ``encoder_last_hidden_state``. Numbers at padded positions mean nothing;
  - ``weights/OUTPUT``: random numbers of an output's shape, zero at padded positions;
  - ``grad/PARAMETER``: the gradient of the sum over outputs of ``sum(output * weights)`` by each tensor of
    ``model.safetensors``, under its name there, so tied weights once. The padding row has its whole gradient,
    which torch would leave out of an embedding (Marian's texts begin with that token);
  - ``left/...`` for GPT-2: ``input_ids``, ``attention_mask``, ``position_ids`` and ``logits`` of the same
    texts padded on the left;
  - where a model decodes, ``decoding``: JSON text with the settings, and texts without start token or prompt,
    padded after eos: ``greedy/`` and, best first on a second axis, ``beam/`` and ``beam_defaults/`` (what
    transformers finds without penalty and with early stopping, and by its defaults), ``beam_ruled/`` (with
    all that ``decode_with_transformers.rules`` asks for) and ``beam_reference/``,
    ``beam_reference_penalized/`` (what ``beam_reference`` finds by the rule of
    ``transformer_jax.decoding.beam_search``, without and with penalty): ``tokens``, ``lengths`` (tokens, eos
    counts), ``log_probs``, and for beams ``scores``. ``greedy/logits`` (B, steps, V), zero after the end.
    ``folder_greedy/`` and ``folder_beam/`` are the best texts where ``generate`` is told no more than how
    many beams and tokens, so that ``config.json`` says the rest.

All from the seeds in ``tiny_models``, so one machine writes the same bytes each time. For models that decode,
the first seed is taken whose outputs are worth comparing: see ``decode_with_transformers.decode``.
"""

import argparse
import io
import json
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from tests.parity import decode_with_transformers
from tests.parity.tiny_models import TINY_MODELS, TinyModel, build, draw_inputs, left_padded

MOST_SEEDS = 5000
Arrays = dict[str, np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes the parity fixtures.")
    parser.add_argument("output_folder", type=pathlib.Path)
    parser.add_argument("--only", choices=sorted(TINY_MODELS), metavar="NAME", help="one model alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums come out in the same order every time
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in [options.only] if options.only else TINY_MODELS:
        seed, size = write(TINY_MODELS[name], options.output_folder / name)
        print(f"{name}: seed {seed}, {size / 1000:.0f} kB", flush=True)


def write(tiny: TinyModel, folder: pathlib.Path) -> tuple[int, int]:
    """Writes one model's folder; gives the seed it came from and the number of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(tiny.seed, tiny.seed + MOST_SEEDS):
        model = build(tiny, seed)
        inputs = draw_inputs(tiny, model.config, np.random.default_rng((seed, 1)))
        decoded: Arrays = {}
        if not tiny.decodes:
            break
        prompts = left_padded(inputs) if tiny.family == "gpt2" else inputs
        found = decode_with_transformers.decode(model, prompts)
        if found is not None:
            decoded = found
            break
    else:
        raise RuntimeError(f"no seed from {tiny.seed} to {seed} makes outputs worth comparing")
    expected = inputs | expected_outputs(model, tiny, inputs, np.random.default_rng((seed, 2))) | decoded
    if tiny.family == "gpt2":
        left = left_padded(inputs)
        left |= {"logits": forward(model, left, tiny.outputs)["logits"].detach().numpy()}
        expected |= {f"left/{key}": array for key, array in left.items()}
    save(model, folder)
    check_saved(model, tiny, inputs, folder)
    expected |= {f"grad/{key}": array for key, array in gradients(model).items()}
    write_arrays(folder / "expected.npz", expected)
    return seed, sum(path.stat().st_size for path in folder.iterdir())


def write_arrays(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """What ``np.savez_compressed`` writes, but smaller by what it spends on each of many small arrays."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            file.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def forward(
    model: transformers.PreTrainedModel, inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: t.long() if t.dtype == torch.int32 else t for name, t in tensors.items()}
    result = model(**tensors)
    names = (*outputs, "encoder_last_hidden_state")
    return {name: result[name] for name in names if name in result}


def expected_outputs(
    model: transformers.PreTrainedModel, tiny: TinyModel, inputs: Arrays, rng: np.random.Generator
) -> Arrays:
    """Outputs and the weights of their sum, whose gradient is left in the model."""
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    found = forward(model, inputs, tiny.outputs)
    expected, total = {}, torch.zeros(())
    for name in tiny.outputs:
        output = found[name]
        weights = rng.standard_normal(tuple(output.shape)).astype(np.float32)
        if mask is not None and output.shape[:2] == mask.shape:
            weights *= mask.reshape(*mask.shape, *[1] * (output.ndim - 2))
        total = total + (output * torch.from_numpy(weights)).sum()
        expected[f"weights/{name}"] = weights
    total.backward()
    return expected | {name: output.detach().numpy() for name, output in found.items()}


def save(model: transformers.PreTrainedModel, folder: pathlib.Path) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # `decoding` has the settings
    config = json.loads((folder / "config.json").read_text())
    if config.pop("scale_decoder_outputs", True) is False:
        config["tie_word_embeddings"] = False
        (folder / "config_published.json").write_text(json.dumps(config, indent=2) + "\n")


def check_saved(
    model: transformers.PreTrainedModel, tiny: TinyModel, inputs: Arrays, folder: pathlib.Path
) -> None:
    """Raises RuntimeError unless transformers reads back the same model, by either config."""
    for path in sorted(folder.glob("config*.json")):
        config = type(model.config).from_dict(json.loads(path.read_text()))
        config._attn_implementation = "eager"
        again = type(model).from_pretrained(folder, config=config).eval()
        for name, output in forward(again, inputs, tiny.outputs).items():
            if not torch.equal(output, forward(model, inputs, tiny.outputs)[name]):
                raise RuntimeError(f"{folder.name} read back with {path.name} gives other {name}")


def gradients(model: transformers.PreTrainedModel) -> Arrays:
    """The gradient of every tensor, under its name in the file: it is saved there the way weights are.

    A model's names in memory are not always those of its checkpoints (ViT's are not). The model is spoilt.
    """
    tensors: dict[str, Any] = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if buffer.requires_grad}
    for name, tensor in tensors.items():
        if tensor.requires_grad and tensor.grad is None:
            raise RuntimeError(f"{name} has no part in the outputs")
        tensor.data.copy_(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


if __name__ == "__main__":
    main()
