"""Files that `starling evaluate mt-bench` writes, opened by FastChat's own code: the same figures?

    python benchmarks/mt_bench_opens.py [--data FOLDER]

makes a throw-away virtual environment in a temporary folder, installs the released package fschat (without its dependencies:
show_result.py and compute_agreement.py need pandas and numpy only), and lets its code read

- what whole live runs wrote: scripted models, a judge that is moody and cannot always be read, asked three times, singly and in
  pairs, by FastChat's protocol and by ours;
- with --data, a folder of FastChat's own (e.g. data/mt_bench), whatever judgments it holds, unpacked where gzipped.

Every figure that FastChat prints is compared with ours, to 1e-12. FastChat's code runs in an interpreter of its own. Needs a
package index, no other network; constraints.txt holds the versions. Exit code 1 when a figure differs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling.config import MTBenchSection
from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.evaluate.mt_bench import Measured, Rules, agreement, files, from_files, official, run
from starling.evaluate.results import Job
from starling.journal import Journal
from starling.judge.rubric import read_prompt, read_rubric
from starling.judge.verdict import FORMS, Verdict, write_reply
from starling.progress import SILENT
from starling.records import ModelRef

ROOT = Path(__file__).parents[1]
MODELS = ("alpha", "beta", "gamma")
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
CLOSE = 1e-12

SHOW = """
import io, json, sys
from argparse import Namespace
import pandas as pd
from fastchat.llm_judge import show_result
tables = []
def show(frame):
    if isinstance(frame, pd.DataFrame):
        tables.append([[list(map(str, i if isinstance(i, tuple) else (i,))), row.to_dict()] for i, row in frame.iterrows()])
show_result.print = show
for mode, path, baseline in json.loads(sys.argv[1]):
    args = Namespace(bench_name="mt_bench", input_file=path, judge_model="x", baseline_model=baseline, model_list=None)
    (show_result.display_result_single if mode == "single" else show_result.display_result_pairwise)(args)
    tables.append(None)
print(json.dumps(tables))
"""
"""Runs show_result's own functions; what they print is caught as numbers instead of rounded text."""

AGREE = """
import json, sys
from fastchat.llm_judge import compute_agreement as c
data = c.get_mt_bench_votes_data([json.load(open(p)) for p in json.loads(sys.argv[1])])
sides = (("gpt4-pair", "human"), ("human", "human"))
print(json.dumps([[c.get_mt_bench_agreement(d, *j, ban=b) for b in ([], ["tie"])] for d in data for j in sides]))
"""


class FastChat:
    """The released package in an interpreter of its own."""

    def __init__(self, folder: Path) -> None:
        pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
        venv.create(folder / "venv", with_pip=True)
        self._python = folder / "venv" / "bin" / "python"
        for options in ([f"pandas=={pins['pandas']}", f"numpy=={pins['numpy']}"], ["--no-deps", f"fschat=={pins['fschat']}"]):
            subprocess.run([self._python, "-m", "pip", "install", "-q", *options], check=True, stderr=subprocess.DEVNULL)
        self.version = pins["fschat"]

    def _run(self, code: str, argument: Any) -> Any:
        done = subprocess.run(
            [self._python, "-c", code, json.dumps(argument)], check=True, stdout=subprocess.PIPE, text=True, env={}
        )
        return json.loads(done.stdout.splitlines()[-1])

    def shown(self, mode: str, path: Path, baseline: str | None = None) -> list[list[Any]]:
        """The tables that show_result prints of one file."""
        return [table for table in self._run(SHOW, [[mode, str(path), baseline]]) if table is not None]

    def agreement(self, paths: Sequence[Path]) -> list[list[list[int]]]:
        """(agree, total) of turn 1 and 2 × judge with people, people × with ties, without."""
        found: list[list[list[int]]] = self._run(AGREE, [str(path) for path in paths])
        return found


class Check:
    """Counts figures and prints where two differ."""

    def __init__(self) -> None:
        self.figures = self.different = 0

    def equal(self, what: str, ours: float | None, theirs: float) -> None:
        self.figures += 1
        if ours is None or abs(ours - theirs) > CLOSE:
            self.different += 1
            print(f"DIFFERENT {what}: ours {ours}, FastChat's {theirs}")

    def single(self, what: str, found: Measured, tables: Sequence[Any]) -> None:
        names = ("turn_1_official", "turn_2_official", "score_official")
        for name, table in zip(names, tables, strict=True):
            theirs = {index[0]: row["score"] for index, row in table}
            for model in found.result.models:
                if model.model in theirs:
                    self.equal(f"{what} {model.model} {name}", model.more.get(name), theirs[model.model])
        print(f"{what}: " + ", ".join(f"{index[0]} {row['score']:.6f}" for index, row in tables[-1]))

    def pairs(self, what: str, found: Measured, tables: Sequence[Any]) -> None:
        ours = {m.model: m.more for m in found.result.models}
        for index, row in tables[0]:
            for name in ("win", "loss", "tie", "win_rate", "loss_rate", "win_rate_adjusted"):
                self.equal(f"{what} {index[0]} {name}", ours[index[0]][name], row[name])
        print(f"{what}: " + ", ".join(f"{index[0]} {row['win_rate_adjusted']:.6f}" for index, row in tables[0]))


# ── live runs with scripted models ───────────────────────────────────────────────────────────────────────────────────


def inputs(folder: Path) -> dict[str, Path]:
    """24 questions, references and prompts with FastChat's fields; the words are made up."""
    numbers = {81 + i: CATEGORIES[i // 3] for i in range(24)}
    questions = [
        {"question_id": q, "category": c, "turns": [f"Tell me about {q}.", f"And what of {q + 1}?"]} for q, c in numbers.items()
    ]
    references = [
        {"question_id": q, "answer_id": "r", "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["right", "right"]}]}
        for q, c in numbers.items() if c in official.REFERENCE_CATEGORIES
    ]  # fmt: skip
    prompts = []
    for kind, form in (("single", "[[rating]]"), ("pair", "[[A]]")):
        for turn in (1, 2):
            sides = [""] if kind == "single" else ["_a", "_b"]
            fields = [f"answer{s}" if turn == 1 else f"answer{s}_{t}" for s in sides for t in ((1, 2) if turn == 2 else (1,))]
            text = " ".join(f"{{{name}}}" for name in (["question"] if turn == 1 else ["question_1", "question_2"]) + fields)
            for reference in (False, True):
                name = official.prompt_name(kind, reference=reference, turn=turn)
                extra = " {ref_answer_1}" if reference else ""
                prompts.append(
                    {
                        "name": name,
                        "type": kind,
                        "system_prompt": f"Judge the {kind}.",
                        "prompt_template": text + extra,
                        "output_format": form,
                    }
                )
    paths = {name: folder / f"{name}.jsonl" for name in ("question", "reference", "prompts")}
    for name, rows in (("question", questions), ("reference", references), ("prompts", prompts)):
        files.write_rows(paths[name], rows)
    return paths


def moody(request: Request) -> str:
    """A judge by lot, the lot being the request's: some replies are no verdict."""
    lot = random.Random(request.key)
    if lot.random() < 0.1:
        return "I would rather not say."
    if not request.messages[-1].content.startswith("The marker of this call is "):
        return (
            f"Well. [[{lot.choice('ABC')}]]"
            if "pair" in request.messages[0].content
            else lot.choice(["[[{}]]", "[{}.5]", "Rating: [[{}]]"]).format(lot.randint(1, 9))
        )
    material, grammar = read_prompt(request.messages), read_rubric(request.messages).grammar
    if FORMS[grammar].score:
        return write_reply(Verdict((0,), True, (), score=lot.randint(1, 10)), grammar)
    order = tuple(lot.sample(range(len(material.answers)), len(material.answers)))
    return write_reply(Verdict(order, True, tuple((a, b, order[0]) for a, b in material.pairs)), grammar)


def speaker(name: str) -> Any:
    """A model that fails one request in fifty."""

    def says(request: Request) -> str | Reply:
        from starling.call import Failure, failed_reply

        lot = random.Random(name + request.key)
        return (
            failed_reply(request.key, "down", Failure.server_error) if lot.random() < 0.02 else f"{name} says {lot.random():.3f}"
        )

    return says


def live(folder: Path, paths: dict[str, Path], mode: str, protocol: str) -> Path:
    """One whole run; returns its folder."""
    out = folder / f"{protocol}-{mode}"
    out.mkdir()
    settings = MTBenchSection.model_validate(
        {"questions": paths["question"], "references": paths["reference"], "judge_prompts": paths["prompts"], "repeats": 3,
         "mode": mode, "protocol": protocol, "baseline": MODELS[0] if mode == "pairwise_baseline" else ""}
    )  # fmt: skip
    with Journal(folder / "journal.sqlite") as journal:
        job = Job(
            models={name: ScriptedEndpoint(ModelRef(provider="scripted", name=name), speaker(name), journal) for name in MODELS},
            systems={}, judge=ScriptedEndpoint(ModelRef(provider="scripted", name="gpt-4"), moody, journal), resamples=100,
            folder=out, progress=SILENT,
        )  # fmt: skip
        run(settings, job)
    return out


def people(path: Path, pair_file: Path) -> tuple[Path, Path]:
    """Votes by lot of two experts and an author, and the judge's own in the form that compute_agreement reads."""
    judge, votes = [], []
    for row in {(r["question_id"], r["turn"], r["model_1"], r["model_2"]): r for r in map(json.loads, pair_file.open())}.values():
        key = {"question_id": row["question_id"], "model_a": row["model_1"], "model_b": row["model_2"], "turn": row["turn"]}
        if "error" not in (row["g1_winner"], row["g2_winner"]):
            word = official.final_winner(row["g1_winner"], row["g2_winner"]).replace("_1", "_a").replace("_2", "_b")
            judge.append({**key, "winner": word, "judge": ["gpt-4", "pair-v2"]})
        lot = random.Random(str(key))
        for who in ("expert_1", "expert_2", "author_1"):
            votes.append({**key, "winner": lot.choice(["model_a", "model_b", "tie", "tie (bothbad)"]), "judge": who})
    (path / "judge.json").write_text(json.dumps(judge))
    (path / "people.json").write_text(json.dumps(votes))
    return path / "judge.json", path / "people.json"


def check_agreement(check: Check, fastchat: FastChat, folder: Path, pair_file: Path) -> None:
    """compute_agreement on one vote per comparison; ours from the same rows."""
    judged, voted = people(folder, pair_file)
    votes = agreement.read_votes(voted).votes
    last: agreement.Votes = {}
    for row in json.loads(judged.read_text()):
        words = {"model_a": "a", "model_b": "b"}
        agreement.add(last, row["turn"], row["question_id"], row["model_a"], row["model_b"], words.get(row["winner"], "tie"))
    ours = {(one.between, one.turn, one.setup): (one.agree, one.total) for one in [
        *agreement.with_people(last, votes, resamples=100, seed=0), *agreement.among_people(votes, resamples=100, seed=0)
    ]}  # fmt: skip
    theirs = iter(fastchat.agreement([judged, voted]))
    for turn in (1, 2):
        for between in ("judge and people", "people"):
            for setup, counts in zip(("S1", "S2"), next(theirs), strict=True):
                for mine, his in zip(ours[between, turn, setup], counts, strict=True):
                    check.equal(f"agreement {between} turn {turn} {setup}", mine, his)
    print("compute_agreement: " + ", ".join(f"{b} turn {t} {s} {a}/{n}" for (b, t, s), (a, n) in ours.items() if t))


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain(path: Path, folder: Path) -> Path:
    """The file as FastChat reads it: not gzipped."""
    if path.suffix != ".gz":
        return path
    copy = folder / path.stem
    copy.write_bytes(gzip.decompress(path.read_bytes()))
    return copy


def main() -> int:
    """Run everything; 0 when all figures agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="a folder with model_judgment files of FastChat's")
    given = parser.parse_args()
    check = Check()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fastchat, paths = FastChat(folder), inputs(folder)
        print(f"fschat {fastchat.version}")
        for protocol in ("official", "starling"):
            for mode in ("single", "pairwise_baseline", "pairwise_all"):
                out = live(folder, paths, mode, protocol)
                file = out / "model_judgment" / f"gpt-4_{'single' if mode == 'single' else 'pair'}.jsonl"
                baseline = MODELS[0] if mode == "pairwise_baseline" else None
                (found,) = from_files([file], rules=Rules(official=True, resamples=100, baseline=baseline or ""))
                tables = fastchat.shown(mode, file, baseline)
                (check.single if mode == "single" else check.pairs)(f"{protocol}, {mode}", found, tables)
                if mode == "pairwise_all":
                    check_agreement(check, fastchat, folder, file)
        for file in sorted((given.data / "model_judgment").glob("*.jsonl*")) if given.data else ():
            mode = "single" if "_single" in file.name else "pairwise_all"
            (found,) = from_files([file], rules=Rules(official=True, resamples=100))
            (check.single if mode == "single" else check.pairs)(file.name, found, fastchat.shown(mode, plain(file, folder)))
    print(f"{check.figures} figures compared, {check.different} different")
    return 1 if check.different else 0


if __name__ == "__main__":
    sys.exit(main())
