"""Which module of the library may import which: the table that ``test_layout`` holds the source against."""

# Imports point one way. A module may import those named beside it and its own siblings (a folder of
# transformer_jax counts as one module). A new module gets its place here and in docs/design.md.
BASIC = "types config"
PARTS = (
    f"{BASIC} files objectives data sampling beam_rules constraints decoding partitioning optimizers "
    "checkpoint progress runtime"
)
READY = (
    f"{PARTS} layers models families tensor_files weights transformers_config preprocessor verify generation "
    "image_inputs inference generation_config pooling sentence_vectors pretrained_model saving hub "
    "conversion pretrained command_line"
)
WHOLE = f"{READY} compatibility experiment run_folder loading shrinking"
MAY_IMPORT = {
    "types": "",
    "config": "types",
    "files": "",
    "placement": "",
    "rendezvous": "",
    "processes": "progress rendezvous",
    "stopping": "",
    "layers": "types placement",
    "models": "types config placement layers",
    "conversion": BASIC,
    "families": BASIC,
    "objectives": BASIC,
    "data": f"{BASIC} files",
    "sampling": BASIC,
    "beam_rules": "",
    "constraints": "",
    "decoding": f"{BASIC} sampling beam_rules",
    "partitioning": f"{BASIC} placement progress",
    "optimizers": BASIC,
    "checkpoint_files": BASIC,
    "checkpoint": f"{BASIC} checkpoint_files",
    "progress": f"{BASIC} files",
    "runtime": BASIC,
    "tensor_files": BASIC,
    "weights": f"{BASIC} files families tensor_files",
    "transformers_config": f"{BASIC} families",
    "preprocessor": f"{BASIC} objectives transformers_config",
    "pooling": f"{BASIC} files transformers_config",
    "generation": f"{PARTS} models",
    "image_inputs": f"{BASIC} data",
    "inference": f"{PARTS} models generation image_inputs",
    "generation_config": f"{PARTS} families models generation inference transformers_config",
    "sentence_vectors": f"{PARTS} models generation inference pooling",
    "verify": f"{PARTS} families models preprocessor generation",
    "pretrained_model": (
        f"{PARTS} families models generation generation_config image_inputs inference pooling "
        "sentence_vectors"
    ),
    "saving": (
        f"{PARTS} families models weights transformers_config generation_config preprocessor "
        "pooling pretrained_model"
    ),
    "hub": f"{BASIC} data families pooling tensor_files transformers_config",
    "pretrained": (
        f"{PARTS} families models tensor_files weights transformers_config generation_config preprocessor "
        "pooling hub conversion pretrained_model saving verify"
    ),
    "command_line": f"{PARTS} generation",
    "tpu_slices": BASIC,
    "jobsets": f"{BASIC} tpu_slices",
    "compatibility": PARTS,
    "experiment": (
        f"{PARTS} compatibility generation layers models families weights transformers_config pretrained"
    ),
    "run_folder": f"{PARTS} pretrained experiment",
    "loading": f"{PARTS} families models pretrained_model pretrained experiment run_folder",
    "shrinking": f"{PARTS} experiment",
    "planning": f"{WHOLE} train_step translate predictions evaluate",
    **dict.fromkeys(
        [
            "train_step",
            "initialization",
            "generate",
            "classify",
            "embed",
            "export",
            "translate",
            "predictions",
            "launching",
        ],
        WHOLE,
    ),
    "evaluate": f"{WHOLE} translate predictions",
    "train": (
        f"{WHOLE} train_step translate predictions evaluate initialization processes rendezvous stopping"
    ),
    "plan": f"{WHOLE} planning",
    "process_groups": "stopping",
    "sweep_results": f"{WHOLE} checkpoint_files launching",
    "sweeps": f"{WHOLE} launching sweep_results",
    "remote_runs": f"{WHOLE} launching",
    "__init__": f"{WHOLE} translate evaluate",
}
