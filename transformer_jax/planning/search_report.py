"""Prints the results of ``plan --search``."""

from typing import Any

from transformer_jax.planning.hardware import GIB
from transformer_jax.planning.report import WHAT_IT_IS, columns, to_json
from transformer_jax.planning.search import Result, Search

HOW = "were compiled, chosen by a closed-form estimate; only these are ranked"


def search_json(search: Search) -> dict[str, Any]:
    """Returns the search as JSON values.

    Keys:
      what, config, topology, candidates (their number), compiled (number of compiled candidates).
      results: a list, best first: mesh, kept (what a layer saves: all, products or inputs), rows_per_device,
        fits, error (empty if it compiled), and plan, as in ``report.to_json``, or null.
    """
    return {
        "what": f"{WHAT_IT_IS} {len(search.results)} of {search.num_candidates} candidates {HOW}.",
        "config": search.config,
        "topology": search.topology.name,
        "candidates": search.num_candidates,
        "compiled": len(search.results),
        "results": [
            {
                "mesh": dict(one.candidate.mesh),
                "kept": one.candidate.kept,
                "rows_per_device": one.candidate.rows,
                "fits": one.fits,
                "error": one.error,
                "plan": None if one.plan is None else to_json(one.plan),
            }
            for one in search.results
        ],
    }


def search_text(search: Search) -> str:
    """Returns the search as a table."""
    rows: list[tuple[str, ...]] = [
        ("", "mesh", "layers save", "rows/device", "GiB", "step, ms", "tokens/s", "utilization")
    ]
    for place, one in enumerate(search.results, 1):
        rows.append((f"{place}." if one.fits else "-", *_cells(one)))
    lines = [
        f"{search.config} on {search.topology.name}: {len(search.results)} of {search.num_candidates} "
        f"candidates {HOW}",
        WHAT_IT_IS,
        "",
        *columns(rows, left=2),
    ]
    for one in search.results:
        if one.error:
            lines.append(f"    not compiled: {_mesh(one)}: {one.error}")
    best = search.results[0]
    if best.fits:
        flags = [f"--config.mesh.{name}={size}" for name, size in best.candidate.mesh]
        flags += [f"--config.model.{name}={value}" for name, value in best.candidate.model_fields.items()]
        flags.append(f"--rows_per_device={best.candidate.rows}")
        lines += [
            "",
            "for the full plan of the first one, replace --search in this command by",
            "  " + " ".join(flags),
        ]
    else:
        lines += ["", "none of them fits: use more devices or a smaller model"]
    return "\n".join(lines)


def _mesh(one: Result) -> str:
    return " x ".join(f"{name}={size}" for name, size in one.candidate.mesh if size > 1) or "one device"


def _cells(one: Result) -> tuple[str, ...]:
    candidate = one.candidate
    what = (_mesh(one), candidate.kept, str(candidate.rows))
    if one.plan is None:
        return (*what, "", "", "", "not compiled")
    step = one.plan.steps[0]
    seconds = step.estimate.seconds
    return (
        *what,
        f"{step.memory.total / GIB:.2f}",
        f"{seconds * 1e3:,.1f}",
        f"{step.tokens / seconds:,.0f}",
        f"{one.utilization:.1%}" if one.fits else "too much memory",
    )
