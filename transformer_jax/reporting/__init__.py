"""Reporting: the metrics files, the progress bar and summary tables.

It may import only ``types``, ``config`` and ``files``.
"""

from transformer_jax.reporting.progress import MetricWriter, ProgressBar, read_metrics, say, summary_table

__all__ = ["MetricWriter", "ProgressBar", "read_metrics", "say", "summary_table"]
