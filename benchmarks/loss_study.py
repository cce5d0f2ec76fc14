"""Which ranking loss is best, at equal data and at equal compute: the commands behind docs/losses.md.

    (a) python benchmarks/loss_study.py simulate --out runs/loss_study          Plackett–Luce data, linear rewards
        python benchmarks/loss_study.py ties --out runs/loss_study              the same with ties
    (b) python benchmarks/loss_study.py microworld --out runs/loss_study        rankings of the microworld's judge
    (c) python benchmarks/loss_study.py nectar DATA --out runs/loss_study       real rankings (nectar_like)
        python benchmarks/loss_study.py table --out runs/loss_study             tables of (b) and (c)

Compared: Plackett–Luce, and Bradley–Terry over all pairs, adjacent pairs, best against worst, one random pair of each ranking.
"""

from __future__ import annotations

import argparse

import loss_study_models
import loss_study_simulated
import loss_study_ties


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    loss_study_simulated.add_command(commands)
    loss_study_ties.add_command(commands)
    loss_study_models.add_commands(commands)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.run(args)


if __name__ == "__main__":
    main()
