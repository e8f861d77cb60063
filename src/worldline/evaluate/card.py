"""A model card of a result: a Markdown table and the `model-index` block that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldline.evaluate.figures import HEADLINE
from worldline.evaluate.speed import told_where


def told(figure: Mapping[str, Any], digits: int) -> str:
    """`21.1 ± 0.8`, or a dash where it was skipped."""
    if figure["status"] != "ok" or figure["value"] is None:
        return "-"
    low, high = figure["low"], figure["high"]
    spread = "" if low is None or high is None else f" ± {(high - low) / 2:.{digits}f}"
    return f"{figure['value']:.{digits}f}{spread}"


def columns(results: Mapping[str, Any]) -> list[str]:
    """The headline figures that any row has, then those of tier 2 and of a bench."""
    rows, units = results["figures"].values(), results["units"]
    names = (*HEADLINE, *(n for n, unit in units.items() if unit.get("column")))
    return [name for name in names if any(row.get(name, {}).get("status") == "ok" for row in rows)]


def markdown(results: Mapping[str, Any]) -> str:
    """The whole card."""
    from yaml import safe_dump

    names, units = columns(results), results["units"]
    model, stamp = results["model"], results["stamp"]
    heads = [f"{n} ({units[n]['unit']})" if units[n]["unit"] else n for n in names]
    rows = [
        f"| {results['rows'][row] if row == 'model' else row} | "
        + " | ".join(told(figures[n], units[n]["digits"]) if n in figures else "-" for n in names)
        + " |"
        for row, figures in results["figures"].items()
    ]
    index = {
        "model-index": [
            {
                "name": model["name"],
                "results": [
                    {
                        "task": {"type": "image-to-video", "name": "Interactive world model"},
                        "dataset": {
                            "type": "worldline-doomrooms",
                            "name": f"worldline replay bench, {results['preset']}",
                            "config": results["preset"],
                            "split": "ood-map",
                            "revision": results["suite_hash"],
                        },
                        "metrics": [
                            {"type": n, "name": n, "value": results["figures"]["model"][n]["value"]}
                            for n in names
                            if results["figures"]["model"][n]["status"] == "ok"
                        ],
                    }
                ],
            }
        ]
    }
    skipped = sorted(
        {
            f"- {name}: {figure['reason']}"
            for name, figure in results["figures"]["model"].items()
            if figure["status"] != "ok" and name in HEADLINE
        }
    )
    facts = [
        f"protocol {results['protocol']}, metrics {results['metric_version']}, suite {results['suite_hash']}",
        f"weights {model['weights']}, {stamp['machine']}, torch {stamp['torch']}, commit {stamp['git']}, {stamp['date']}",
    ]
    if "bench" in results:
        facts.append(f"frame rate, first pixels and action to pixel measured on {told_where(results['bench'])}")
    facts += [
        f"{name} with weights {tier['weights']}"
        for name, tier in results["tiers"].items()
        if tier["status"] == "ok" and "weights" in tier
    ]
    return "\n".join(
        [
            "---",
            safe_dump(index, sort_keys=False).rstrip(),
            "---",
            f"# {model['name']} on the replay bench, preset {results['preset']}",
            "",
            f"{results['episodes']} episodes, {results['frames']} frames; 95 % bootstrap intervals over episodes as ±. "
            + "; ".join(facts) + ". Content filter: none.",
            "",
            "| | " + " | ".join(heads) + " |",
            "|---" * (len(names) + 1) + "|",
            *rows,
            "",
            *(["Not measured:", "", *skipped, ""] if skipped else []),
        ]
    )  # fmt: skip
