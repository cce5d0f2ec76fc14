"""Cost per ranking against K and against the prompt's length, next to the floor: measured points, table, figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ANSWERS = (2, 3, 4, 5, 7, 9, 12)
PROMPTS = (64, 128, 256, 512, 1024, 2000)
PROMPT, RESPONSE, K = 200, 150, 7
"""What stays fixed while the other varies."""


def points() -> list[dict[str, int]]:
    """(answers, prompt, response) of every point; the two sweeps share none."""
    by_answers = [{"answers": k, "prompt": PROMPT, "response": RESPONSE} for k in ANSWERS]
    return by_answers + [{"answers": K, "prompt": p, "response": RESPONSE} for p in PROMPTS]


def measure(models: Sequence[str], rounds: int, run: Callable[[str, dict[str, int]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Every point of every model, `rounds` times round; `run` gives one run of Starling with its floor."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for model in models:
            for i, point in enumerate(points()):
                runs.setdefault((model, i), []).append(run(model, point))
    return [line(model, points()[i], found) for (model, i), found in runs.items()]


def line(model: str, point: dict[str, int], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one point. Each run's cost is divided by the floor of its own process."""
    return {
        "model": model,
        **point,
        "tokens": round(runs[0]["floor"]["tokens"], 1),
        "cpu_s": round(median(r["cpu_s"] for r in runs), 4),
        "floor_cpu_s": round(median(r["floor"]["cpu_s"] for r in runs), 4),
        "gflop_per_cpu_s": round(median(r["floor"]["gflop_per_cpu_s"] for r in runs), 1),
        "times_floor": round(median(r["cpu_s"] / r["floor"]["cpu_s"] for r in runs), 3),
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| model | K | prompt | tokens | CPU-s per ranking | floor | × floor | GFLOP/CPU-s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        rows.append(
            f"| {x['model']} | {x['answers']} | {x['prompt']} | {x['tokens']:.0f} | {x['cpu_s']:.3f} | {x['floor_cpu_s']:.3f} | "
            f"{x['times_floor']:.2f} | {x['gflop_per_cpu_s']:.0f} |"
        )
    return "\n".join(rows)


def figure(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels, one line and its floor per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    sweeps = [("answers", "prompt", PROMPT, "answers per ranking, K"), ("prompt", "answers", K, "prompt, mean tokens")]
    for axis, (varied, fixed, value, label) in zip(axes, sweeps, strict=True):
        for number, model in enumerate(dict.fromkeys(x["model"] for x in lines)):
            chosen = sorted((x for x in lines if x["model"] == model and x[fixed] == value), key=lambda x: x[varied])
            places = [x[varied] for x in chosen]
            axis.plot(places, [x["cpu_s"] for x in chosen], "o-", color=f"C{number}", label=f"{model}: Starling")
            axis.plot(places, [x["floor_cpu_s"] for x in chosen], "--", color=f"C{number}", label=f"{model}: floor")
        axis.set(xlabel=label, ylabel="CPU-seconds per ranking", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[1].set_xscale("log", base=2)
    axes[0].set_title(f"prompt {PROMPT}, response {RESPONSE}")
    axes[1].set_title(f"K = {K}, response {RESPONSE}")
    axes[0].legend()
    drawn.savefig(path, dpi=150)
    pyplot.close(drawn)
