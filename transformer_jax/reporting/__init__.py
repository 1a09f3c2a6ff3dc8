"""Metrics on disk, the progress bar and tables.

It may import types, config and files alone.
"""

from transformer_jax.reporting.progress import MetricWriter, ProgressBar, read_metrics, say, summary_table

__all__ = ["MetricWriter", "ProgressBar", "read_metrics", "say", "summary_table"]
