"""Makes meshes of devices, and shards arrays with rules from logical axes to mesh axes.

It may import ``types``, ``config`` and ``reporting/``; ``layers/`` and ``models/`` import only ``placement``.
"""

from transformer_jax.sharding.partitioning import MeshConfig, make_mesh, shard_batch
from transformer_jax.sharding.placement import constrain

__all__ = ["MeshConfig", "constrain", "make_mesh", "shard_batch"]
