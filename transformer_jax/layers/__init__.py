"""Attention, masks, kernels, norms, positions: modules with explicit fields, arrays in and arrays out.

It may import sharding.placement and types alone; what a config says, models/ hands to these modules.
"""
