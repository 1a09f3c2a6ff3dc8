"""Which folder of the library may import which: the table that ``test_layout`` holds the source against."""

# Imports point one way: a folder may import those named beside it, itself, and BASIC.
# A program (train, evaluate, …) stands on the top level and may import every folder, but no program.
BASIC = ("types", "config", "files")
PROGRAMS = ("train", "evaluate", "translate", "generate", "classify", "embed", "export", "plan")
MAY_IMPORT = {
    "reporting": "",
    "sharding": "reporting",
    "distributed": "reporting",
    "checkpoints": "",
    "optimizers": "",
    "data": "",
    "objectives": "",
    "layers": "sharding",
    "models": "layers sharding",
    "families": "models",
    "decoding": "models data sharding",
    "cli": "decoding data checkpoints",
    "inference": "decoding models families objectives data",
    "pretrained": "inference decoding cli models families objectives data sharding reporting",
    "runs": "pretrained inference decoding cli layers models families objectives optimizers data checkpoints "
    "sharding reporting",
    "evaluation": "runs inference decoding models objectives data sharding reporting",
    "training": "evaluation runs pretrained cli models families objectives optimizers data checkpoints "
    "sharding distributed reporting",
    "planning": "training evaluation runs cli models layers objectives data sharding",
    "launching": "runs cli checkpoints reporting",
}
# Layers take explicit fields: whoever builds one reads the config.
WITHOUT_CONFIG = ("layers",)
