"""Which treatment of ties is best: part (a), second half, of `loss_study.py`; simulated rankings of a judge who sees steps.

Answers have rewards and noise as in `loss_study_simulated.py` (Plackett–Luce), but the judge tells only L steps apart, cut at the
quantiles of what it sees, so answers in one step are tied. Compared, by the error of the direction of θ over that of
Plackett–Luce on the order without ties, which a judge with finer steps would have given:

    efron, breslow, strict    Plackett–Luce with `ties`
    lots                      Plackett–Luce after ties are broken at random, as Starling's judge was told to
    pairs without ties        Bradley–Terry over the pairs of different rank
    pairs, ties one half      Bradley–Terry with `tied_pairs`
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loss_study_simulated import TRUTH, Loss, error, fit, ratio, seen_rankings
from torch import Tensor

from starling.losses.ranking import Targets, bradley_terry, plackett_luce, strict_order

WAYS = ("efron", "breslow", "strict", "lots", "pairs without ties", "pairs, ties one half")


def add_command(commands: Any) -> None:
    """`ties`."""
    parser = commands.add_parser("ties", help="(a) simulated rankings with ties")
    parser.add_argument("--k", type=int, default=7)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 3, 5, 10], help="steps that the judge tells apart")
    parser.add_argument("--rankings", type=int, default=400, help="per simulation")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """All numbers of steps; writes OUT/ties.json, prints the table."""
    torch.set_num_threads(1)
    columns = [one_column(steps, args) for steps in args.steps]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "run"}
    (args.out / "ties.json").write_text(json.dumps({"settings": settings, "columns": columns}, indent=1) + "\n")
    print("| | " + " | ".join(f"{c['steps']} steps, {c['tied']:.0%} of pairs tied" for c in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for way in WAYS:
        print(f"| {way} | " + " | ".join("{ratio:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]".format_map(c[way]) for c in columns) + " |")


def one_column(steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every way at one number of steps: mean error over that of the order without ties, with its interval."""
    seed = args.seed * 1000 + steps
    generator = torch.Generator().manual_seed(seed)
    flat_NKD, seen_NK = seen_rankings("plackett_luce", args.simulations * args.rankings, args.k, generator)
    cuts = seen_NK.flatten().quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]).contiguous()
    step_NK = torch.bucketize(seen_NK, cuts)
    rank_NK = 1 + (step_NK[:, None, :] > step_NK[:, :, None]).sum(2)
    x_SNKD = flat_NKD.reshape(args.simulations, args.rankings, args.k, -1)
    base_S = error("direction", fit(Loss("order", plackett_luce), x_SNKD))
    targets = Targets(rank_NK, torch.ones_like(rank_NK, dtype=torch.bool))
    lots_NKD, strict = broken(flat_NKD, rank_NK, generator), strict_order(targets.present_BK)
    pairs = rank_NK[:, :, None] == rank_NK[:, None, :]
    found: dict[str, Any] = {"steps": steps, "tied": float((pairs.sum() - rank_NK.numel()) / (rank_NK.numel() * (args.k - 1)))}
    for way in WAYS:
        if way == "lots":
            theta_SD = fit(Loss(way, partial(plackett_luce, targets=strict)), lots_NKD.reshape(x_SNKD.shape))
        elif way.startswith("pairs"):
            of = partial(bradley_terry, targets=targets, tied_pairs=way.endswith("half"))
            theta_SD = fit(Loss(way, of), x_SNKD)
        else:
            theta_SD = fit(Loss(way, partial(plackett_luce, targets=targets, ties=way)), x_SNKD)
        found[way] = ratio(error("direction", theta_SD), base_S, seed)
        found[way]["scale"] = float((theta_SD @ TRUTH).mean() / TRUTH.dot(TRUTH))
    return found


def broken(x_NKD: Tensor, rank_NK: Tensor, generator: torch.Generator) -> Tensor:
    """Answers in an order in which lots decide among the tied."""
    order_NK = (rank_NK + 0.5 * torch.rand(rank_NK.shape, dtype=torch.float64, generator=generator)).argsort(1)
    return x_NKD.gather(1, order_NK[:, :, None].expand_as(x_NKD))
