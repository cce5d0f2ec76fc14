"""Which ranking loss is best: part (a) of `loss_study.py`, simulated rankings whose truth is known.

Rewards are linear, r = x·θ, answers are drawn as x ~ N(0, I), and a ranking is drawn from

    plackett_luce   the model of the K-wise loss
    thurstone       r plus Gaussian noise of the same spread, sorted: no loss here is the likelihood of that
    random_20       plackett_luce, but every fifth ranking is a random order

θ is fitted with the project's own losses (losses/ranking.py) by Newton's method, many simulations side by side. Under the first
law, theory (arXiv 2301.11270, section 3) says that the maximum likelihood and the split into all pairs both find θ, and that
the split has the larger variance. A random pair is a pair like all pairs. Neighbours, and best against worst, are pairs picked
by their outcome: they do not follow Bradley–Terry with θ, and neither does anything under the other laws. Their losses end at
another θ*, which for these x lies on the ray of θ (turning x around θ changes nothing): the direction is found all the same.

What theory predicts is worked out for every law and loss from fresh rankings: θ* minimises the mean loss, θ̂ − θ* has the
covariance V/n, V = H⁻¹ G H⁻¹ the sandwich at θ* (H mean Hessian, G mean outer product of the gradients of single rankings).

    squared      E |θ̂ − θ|²          ≈ |θ* − θ|² + tr V / n
    direction    E 1 − cos(θ̂, θ)     ≈ tr PV / (2 n |θ*|²), P projecting out θ: what orders answers, whatever the scale

Each is divided by Plackett–Luce's on the same simulations; intervals are bootstraps over simulations. At equal compute a loss
that reads 2 of K answers gets K/2 times the rankings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling.losses.ranking import bradley_terry, plackett_luce

LAWS = ("plackett_luce", "thurstone", "random_20")
BLOCKS = (("plackett_luce", "squared"), *((law, "direction") for law in LAWS))
"""(law, error) of the tables."""
TRUTH = torch.tensor([1.0, -0.8, 0.6, 0.4], dtype=torch.float64)
FAR = 30.0
"""Longer than this is a θ̂ that has no end: some direction orders all pairs rightly, and the loss falls along it for ever."""


@dataclass(frozen=True)
class Loss:
    """One way to learn from a ranking: which slots it reads, and what it makes of their scores."""

    name: str
    of: Callable[..., Any]
    reads_a_pair: bool = False


def adjacent(scores_BK: Tensor, **how: Any) -> Any:
    """Bradley–Terry over neighbours."""
    return bradley_terry(scores_BK, pairs="adjacent", **how)


LOSSES = (
    Loss("Plackett–Luce", plackett_luce),
    Loss("all pairs", bradley_terry),
    Loss("adjacent pairs", adjacent),
    Loss("best vs worst", bradley_terry, reads_a_pair=True),
    Loss("random pair", bradley_terry, reads_a_pair=True),
)


def add_command(commands: Any) -> None:
    """`simulate`."""
    parser = commands.add_parser("simulate", help="(a) simulated rankings")
    parser.add_argument("--ks", type=int, nargs="+", default=[2, 3, 5, 7, 9])
    parser.add_argument("--rankings", type=int, default=400, help="per simulation")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--theory", type=int, default=20_000, help="rankings behind the predictions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """All laws and K; writes OUT/simulated.json and .png, prints the table."""
    torch.set_num_threads(1)
    rows = [row for law in LAWS for k in args.ks for row in one_cell(law, k, args)]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "run"}
    (args.out / "simulated.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    draw(rows, args.out / "simulated.png")
    print(table(rows))


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rankings(law: str, n: int, k: int, generator: torch.Generator) -> Tensor:
    """x_NKD of n rankings, best answer first."""
    return seen_rankings(law, n, k, generator)[0]


def seen_rankings(law: str, n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same with seen_NK, the reward and noise that were sorted. Sorting r + Gumbel noise draws from Plackett–Luce."""
    x_NKD = torch.randn(n, k, len(TRUTH), dtype=torch.float64, generator=generator)
    reward_NK = x_NKD @ TRUTH
    if law == "thurstone":
        noise_NK = torch.randn(n, k, dtype=torch.float64, generator=generator) * (torch.pi / 6**0.5)
    else:
        noise_NK = -(-torch.rand(n, k, dtype=torch.float64, generator=generator).log()).log()
    seen_NK = reward_NK + noise_NK
    if law == "random_20":
        lost_N = torch.rand(n, generator=generator) < 0.2
        seen_NK = torch.where(lost_N[:, None], noise_NK, seen_NK)
    seen_NK, order_NK = seen_NK.sort(1, descending=True)
    return x_NKD.gather(1, order_NK[:, :, None].expand_as(x_NKD)), seen_NK


def read_by(loss: Loss, x_NKD: Tensor, generator: torch.Generator) -> Tensor:
    """The answers that a loss reads: all, best and worst, or two random ones in their order."""
    if not loss.reads_a_pair:
        return x_NKD
    n, k, _ = x_NKD.shape
    if loss.name == "best vs worst":
        return x_NKD[:, [0, k - 1]]
    drawn_N2 = torch.rand(n, k, generator=generator).argsort(1)[:, :2].sort(1).values
    return x_NKD.gather(1, drawn_N2[:, :, None].expand(-1, -1, x_NKD.shape[2]))


# ── fitting and theory ───────────────────────────────────────────────────────────────────────────────────────────────


def fit(loss: Loss, x_SNKD: Tensor) -> Tensor:
    """θ_SD of S simulations of N rankings each, by Newton's method from 0; all of these losses are convex in θ. Where there is no
    minimum, the first one longer than FAR on the way: its direction is that of the best separation, near enough."""
    s, n, k, d = x_SNKD.shape
    theta_SD = torch.zeros(s, d, dtype=torch.float64)
    for _ in range(50):
        gradient_SD, hessian_SDD = derivatives(loss, x_SNKD, theta_SD)
        far_S = theta_SD.norm(dim=1) > FAR
        hessian_SDD[far_S] = torch.eye(d, dtype=torch.float64)
        step_SD = torch.linalg.solve(hessian_SDD, gradient_SD[:, :, None])[:, :, 0] * ~far_S[:, None]
        length_S = step_SD.norm(dim=1, keepdim=True)
        theta_SD = theta_SD - step_SD * (2.0 / length_S.clamp(min=2.0))
        if float(length_S.max()) < 1e-9:
            return theta_SD
    raise RuntimeError(f"{loss.name} has not converged in 50 steps at n = {n}, {k} answers read")


def derivatives(loss: Loss, x_SNKD: Tensor, at_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of each simulation's mean loss: the simulations share no term, so sums over them separate."""
    s, n, k, d = x_SNKD.shape
    theta_SD = at_SD.clone().requires_grad_()
    scores_BK = torch.einsum("snkd,sd->snk", x_SNKD, theta_SD).reshape(s * n, k)
    (gradient_SD,) = torch.autograd.grad(loss.of(scores_BK, normaliser=n).loss, theta_SD, create_graph=True)
    rows = [torch.autograd.grad(gradient_SD[:, i].sum(), theta_SD, retain_graph=True)[0] for i in range(d)]
    return gradient_SD.detach(), torch.stack(rows, 1)


def predicted(loss: Loss, x_NKD: Tensor) -> Callable[[int], dict[str, float]]:
    """The errors that n rankings should lead to, by both measures, and how long θ* is beside θ; see the head of this file."""
    star_D = fit(loss, x_NKD[None])[0]
    gradient_ND, hessian_NDD = derivatives(loss, x_NKD[:, None], star_D.expand(len(x_NKD), -1))
    inverse_DD = torch.linalg.inv(hessian_NDD.mean(0))
    variance_DD = inverse_DD @ (gradient_ND.T @ gradient_ND / len(gradient_ND)) @ inverse_DD
    unit_D = TRUTH / TRUTH.norm()
    across = float(variance_DD.trace() - unit_D @ variance_DD @ unit_D)
    return lambda n: {
        "squared": float(((star_D - TRUTH) ** 2).sum() + variance_DD.trace() / n),
        "direction": across / (2 * n * float(star_D @ star_D)),
        "scale": float(star_D @ unit_D / TRUTH.norm()),
    }


def one_cell(law: str, k: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every loss at one law and K, at equal data, and at equal compute where that differs."""
    seed = args.seed * 1000 + LAWS.index(law) * 100 + k
    generator = torch.Generator().manual_seed(seed)
    fresh = rankings(law, args.theory, k, generator)
    most = max(args.rankings, round(args.rankings * k / 2))
    x_SNKD = rankings(law, args.simulations * most, k, generator).reshape(args.simulations, most, k, -1)
    fits: dict[tuple[str, str], Tensor] = {}
    rows: list[dict[str, Any]] = []
    for loss in LOSSES:
        theory = predicted(loss, read_by(loss, fresh, generator))
        for regime in ("data", "compute") if loss.reads_a_pair and k > 2 else ("data",):
            n = args.rankings if regime == "data" else most
            flat = x_SNKD[:, :n].reshape(args.simulations * n, k, -1)
            read = read_by(loss, flat, generator)
            theta_SD = fits[loss.name, regime] = fit(loss, read.reshape(args.simulations, n, *read.shape[1:]))
            row = {"law": law, "k": k, "loss": loss.name, "regime": regime, "n": n}
            row["scale"] = float((theta_SD @ TRUTH).median() / TRUTH.dot(TRUTH))
            row["no_minimum"] = int((theta_SD.norm(dim=1) > FAR).sum())
            row["predicted"] = theory(n)
            rows.append(row)
    for row in rows:
        for measure in ("squared", "direction"):
            if (law, measure) in BLOCKS:
                ours, base = (error(measure, fits[key]) for key in ((row["loss"], row["regime"]), ("Plackett–Luce", "data")))
                expected = row["predicted"][measure] / rows[0]["predicted"][measure]
                row[measure] = ratio(ours, base, seed) | {"theory": expected}
    return rows


def error(measure: str, theta_SD: Tensor) -> Tensor:
    """One number per simulation; see the module."""
    if measure == "squared":
        return ((theta_SD - TRUTH) ** 2).sum(1)
    return 1 - torch.nn.functional.cosine_similarity(theta_SD, TRUTH[None], dim=1)


def ratio(errors_S: Tensor, base_S: Tensor, seed: int) -> dict[str, Any]:
    """Mean error, and its ratio to Plackett–Luce's with a 95 % bootstrap interval over simulations."""
    ours, base = errors_S.numpy(), base_S.numpy()
    drawn = np.random.default_rng(seed).integers(0, len(ours), (2000, len(ours)))
    low, high = np.quantile(ours[drawn].mean(1) / base[drawn].mean(1), [0.025, 0.975])
    return {"error": float(ours.mean()), "ratio": float(ours.mean() / base.mean()), "ci": [float(low), float(high)]}


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: error over Plackett–Luce's [95 %] (theory); at the end how long the θ is that each finds, the median. Of squared
    errors there is no mean where simulations are without a minimum: how many are."""
    ks = sorted({row["k"] for row in rows})
    lines = ["| law, error | loss | equal | " + " | ".join(f"K = {k}" for k in ks) + " |", "|---" * (3 + len(ks)) + "|"]
    for law, measure in BLOCKS:
        for name, regime in kinds(rows)[1:]:
            found = {r["k"]: r for r in rows if (r["law"], r["loss"], r["regime"]) == (law, name, regime)}
            lines.append(
                f"| {law}, {measure} | {name} | {regime} | " + " | ".join(cell(found.get(k), measure) for k in ks) + " |"
            )
    for name, regime in kinds(rows):
        if regime == "data":
            found = {r["k"]: r for r in rows if (r["law"], r["loss"], r["regime"]) == (LAWS[0], name, regime)}
            said = [f"{found[k]['scale']:.2f} ({found[k]['predicted']['scale']:.2f})" for k in ks]
            lines.append(f"| {LAWS[0]}, length of θ | {name} | data | " + " | ".join(said) + " |")
    return "\n".join(lines)


def kinds(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(loss, regime) in the order of the tables."""
    return list(dict.fromkeys((row["loss"], row["regime"]) for row in rows))


def cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None:
        return ""
    if measure == "squared" and row["no_minimum"]:
        return f"{row['no_minimum']} without minimum ({row[measure]['theory']:.1f})"
    digits = 2 if row[measure]["ratio"] < 10 else 0
    ratio, low, high = (f"{value:.{digits}f}" for value in (row[measure]["ratio"], *row[measure]["ci"]))
    return f"{ratio} [{low}, {high}] ({row[measure]['theory']:.{digits}f})"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per block: ratio against K; crosses are the theory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(BLOCKS), figsize=(15, 4), sharey=True, layout="constrained")
    for axis, (law, measure) in zip(axes, BLOCKS, strict=True):
        for i, (name, regime) in enumerate(kinds(rows)):
            found = [r for r in rows if (r["law"], r["loss"], r["regime"]) == (law, name, regime)]
            ks, ratios = [r["k"] for r in found], [r[measure]["ratio"] for r in found]
            cis = [r[measure]["ci"] for r in found]
            spread = [
                [at - ci[0] for at, ci in zip(ratios, cis, strict=True)],
                [ci[1] - at for at, ci in zip(ratios, cis, strict=True)],
            ]
            label = name + (", equal compute" if regime == "compute" else "")
            axis.errorbar(
                ks,
                ratios,
                spread,
                fmt="--" if regime == "compute" else "-",
                marker="o",
                ms=3,
                capsize=2,
                color=f"C{i}",
                label=label,
            )
            axis.plot(ks, [r[measure]["theory"] for r in found], "x", color=f"C{i}", ms=8)
        axis.set(title=f"{law.replace('_', ' ')}: error of θ, {measure}", xlabel="K", yscale="log", ylim=(0.5, 30))
        axis.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error / Plackett–Luce's")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
