"""Reward models on real rankings: small transformers of our own making against the bars of the data set.

Data: 5,066 seven-wise rankings of 56 models' answers to 644 AlpacaEval instructions in Nectar's schema, ordered by
GPT-4-turbo's preference over one common baseline (tatsu-lab/alpaca_eval, CC-BY-NC-4.0). No pretrained weights are used:
the tokenizer, the backbone (GPT-2 or BERT shape, pretrained on the training answers if asked to) and the reward model are
all made here, on one CPU thread, with `starling.reward.train`; what scores is the folder that it saved.

Instructions are split by `starling.chat.split_of` (20 % test, 10 % validation): no instruction is on both sides. Every
number is over the instructions of one split, with a 95 % bootstrap interval that resamples instructions. `--split validation`
is for choosing settings. Baselines, on the same rankings:

    longest answer            the longer text is better
    average rank of the model the answering model's mean rank in the training rankings (it sees the model's name)

    python benchmarks/nectar_like.py train DATA/nectar_like/train.jsonl.gz --kind decoder --out runs/nectar_like
    python benchmarks/nectar_like.py average DATA/nectar_like/train.jsonl.gz --out runs/nectar_like encoder decoder
    python benchmarks/nectar_like.py curve --out runs/nectar_like

`train` writes OUT/NAME.json and the scores of every ranking, OUT/NAME.scores.json; `average` judges the mean of several models'
scores, each standardised by the mean and deviation that Starling stored with the model; `curve` draws accuracy against the
number of training rankings from the NAME.json of runs with `--rankings`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from starling.chat import conversation_key, split_of
from starling.config import OptimizerSection, RewardSection
from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import load_scalar, save_folder
from starling.models.scorer import score_conversations
from starling.nectar import import_nectar
from starling.progress import RichProgress
from starling.records import RankedPrompt
from starling.reward.train import train
from starling.stats import bootstrap_mean
from starling.training import plan
from starling.training.loop import apply_step, make_accelerator, make_optimizer, set_determinism

PREDICTED = {"decoder": 0.25, "encoder": 0.15}
"""Share of the tokens that pretraining predicts: 15 % masked ones as BERT; a quarter of the next tokens, because the layer over
the vocabulary costs more than the rest of a model this small, and more texts teach more than more positions of one."""
Scores = list[list[float]]
"""Per ranking one score per answer, in the order of the ranking: best first."""


def main() -> None:
    """One of the three commands."""
    args = arguments()
    {"train": run_train, "average": run_average, "curve": run_curve}[args.command](args)


def run_train(args: argparse.Namespace) -> None:
    """Train one model, score the split, print the table, write OUT/NAME.json and OUT/NAME.scores.json."""
    started = time.process_time()
    if args.bf16_products:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    splits = read_splits(args.data)
    whole = splits["train"]
    splits["train"] = some_of(whole, args.rankings)
    name = args.name or args.kind
    folder = args.out / name
    set_determinism(args.seed, threads=1)
    backbone = args.backbone or folder / "backbone"
    build_backbone(args, whole, backbone)
    pretraining = time.process_time() - started
    metrics = train(
        splits["train"],
        random.Random(0).sample(splits["validation"], 96),  # for the log and the statistics; the table uses every ranking
        backbone=backbone,
        out=folder / "reward",
        work=folder / "work",
        settings=reward_settings(args),
        seed=args.seed,
        progress=RichProgress(),
    )
    judged = splits[args.split]
    scores = model_scores(folder / "reward", judged)
    results = {**baselines(whole, judged), f"{name}, trained here": evaluate(judged, scores)}
    summary = {
        "name": name,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "instructions": {k: len({conversation_key(r.prompt.messages) for r in v}) for k, v in splits.items()},
        "rankings": {k: len(v) for k, v in splits.items()},
        "training": metrics,
        "cpu_seconds": round(time.process_time() - started),
        "of_which_backbone": round(pretraining),
        "split": args.split,
        "results": results,
    }
    (args.out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (args.out / f"{name}.{args.split}.scores.json").write_text(json.dumps(scores) + "\n")
    print(table(results, summary))


def run_average(args: argparse.Namespace) -> None:
    """Judge the mean score of several trained models, beside each of them."""
    splits = read_splits(args.data)
    judged = splits[args.split]
    found = {name: json.loads((args.out / f"{name}.{args.split}.scores.json").read_text()) for name in args.names}
    mean = [[sum(column) / len(column) for column in zip(*rows, strict=True)] for rows in zip(*found.values(), strict=True)]
    results = {**baselines(splits["train"], judged), **{name: evaluate(judged, scores) for name, scores in found.items()}}
    results["mean score of " + ", ".join(args.names)] = evaluate(judged, mean)
    spent = sum(json.loads((args.out / f"{name}.json").read_text())["cpu_seconds"] for name in args.names)
    summary = {
        "split": args.split,
        "names": args.names,
        "instructions": {k: len({conversation_key(r.prompt.messages) for r in v}) for k, v in splits.items()},
        "rankings": {k: len(v) for k, v in splits.items()},
        "cpu_seconds": spent,
        "results": results,
    }
    (args.out / f"average.{args.split}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(results, summary))


def run_curve(args: argparse.Namespace) -> None:
    """Accuracy against the number of training rankings: a table, and OUT/curve.png."""
    from matplotlib.figure import Figure

    runs = [
        json.loads(path.read_text()) for path in sorted(args.out.glob("*.json")) if not path.stem.endswith((".scores", "average"))
    ]
    runs = [run for run in runs if run.get("name") in args.names or (not args.names and "name" in run)]
    points = sorted(
        (run["rankings"]["train"], run["instructions"]["train"], run["name"], list(run["results"].values())[-1]) for run in runs
    )
    print("| rankings | instructions | pairs | top-1 |\n|---|---|---|---|")
    for rankings, instructions, _, result in points:
        print(f"| {rankings:,} | {instructions} | {cell(result['pair_accuracy'])} | {cell(result['top1'])} |")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    bars = {"pair_accuracy": ("pairs", 0.760), "top1": ("top-1", 0.618)}
    for axes, (measure, (label, bar)) in zip(figure.subplots(1, 2), bars.items(), strict=True):
        x = [p[0] for p in points]
        mean = [p[3][measure]["mean"] for p in points]
        low, high = ([p[3][measure]["ci"][side] for p in points] for side in (0, 1))
        axes.fill_between(x, low, high, alpha=0.2, linewidth=0)
        axes.plot(x, mean, marker="o", label="trained here, 95 %")
        baseline = runs[0]["results"]["longest answer"][measure]["mean"]
        axes.axhline(bar, color="black", linestyle="--", linewidth=1, label="bar")
        axes.axhline(baseline, color="gray", linestyle=":", linewidth=1, label="longest answer")
        axes.set(xscale="log", xlabel="training rankings", title=f"{label}, unseen instructions")
    axes.legend(frameon=False)
    figure.savefig(args.out / "curve.png", dpi=150)


def arguments() -> argparse.Namespace:
    """The command line; the defaults are the settings behind docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train one model and judge it")
    training.add_argument("data", type=Path)
    training.add_argument("--kind", choices=("decoder", "encoder"), required=True)
    training.add_argument("--name", default="", help="of its folder and files in OUT; the kind if not given")
    training.add_argument("--backbone", type=Path, help="a backbone that this script made, to start from; made there if missing")
    add_model(training)
    training.add_argument("--epochs", type=int, default=1)
    training.add_argument("--rate", type=float, default=1e-3)
    training.add_argument("--weight-decay", type=float, default=0.01)
    training.add_argument("--per-step", type=int, default=16, help="rankings per optimiser step")
    training.add_argument("--rankings", type=int, default=0, help="train on the first so many of a fixed shuffle; 0 = all")
    training.add_argument("--checkpoint-steps", type=int, default=60)
    averaging = commands.add_parser("average", help="judge the mean score of several trained models")
    averaging.add_argument("data", type=Path)
    averaging.add_argument("names", nargs="+")
    curve = commands.add_parser("curve", help="accuracy against training rankings")
    curve.add_argument("names", nargs="*", help="runs to draw; all if none is named")
    for command in (training, averaging, curve):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--split", choices=("test", "validation"), default="test", help="validation: for choosing settings")
    return parser.parse_args()


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say what the backbone is; `loss_study.py` has them too."""
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--head-size", type=int, default=64, help="width of an attention head: few wide heads cost less on a CPU")
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--pretrain-steps", type=int, default=0, help="steps of language modelling on 64 training answers each")
    parser.add_argument("--pretrain-optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--pretrain-rate", type=float, default=1e-3)
    parser.add_argument(
        "--bf16-products", action="store_true", help="matrix products of fp32 numbers in bf16 (AVX512-BF16: 2-4x)"
    )
    parser.add_argument("--seed", type=int, default=0)


def read_splits(data: Path) -> dict[str, list[RankedPrompt]]:
    """The rankings by split; no instruction is in two of them."""
    rows, _ = import_nectar(data)
    splits: dict[str, list[RankedPrompt]] = defaultdict(list)
    for row in rows:
        splits[split_of(row.prompt.messages, validation=0.1, test=0.2)].append(row)
    return splits


def some_of(rows: Sequence[RankedPrompt], count: int) -> list[RankedPrompt]:
    """The first `count` rankings of one fixed shuffle, so that a smaller sample is part of a larger one; all if 0."""
    return random.Random(0).sample(rows, len(rows))[: count or None]


def reward_settings(args: argparse.Namespace) -> RewardSection:
    """The reward section of a settings file with these numbers."""
    optimizer = OptimizerSection(
        learning_rate=args.rate, betas=(0.9, 0.98), weight_decay=args.weight_decay, warmup_fraction=0.1, schedule="cosine"
    )
    return RewardSection(
        backbone="built here",
        optimizer=optimizer,
        epochs=args.epochs,
        rankings_per_step=args.per_step,
        micro_tokens=24_576,
        max_length=args.max_length,
        checkpoint_steps=args.checkpoint_steps,
    )


# ── tokenizer and backbone ───────────────────────────────────────────────────────────────────────────────────────────


def build_backbone(args: argparse.Namespace, rows: Sequence[RankedPrompt], folder: Path) -> Path:
    """Tokenizer and backbone as a transformers folder; built once."""
    if (folder / "model.safetensors").exists():
        return folder
    tokenizer = train_tokenizer(rows, args.vocab, args.kind)
    wide = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    heads = max(1, args.hidden // args.head_size)
    torch.manual_seed(args.seed)
    if args.kind == "decoder":
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config: Any = transformers.GPT2Config(
            **wide, **ids, n_embd=args.hidden, n_layer=args.layers, n_head=heads, n_positions=args.max_length,
            activation_function="gelu",  # three times faster on a CPU than the tanh form, for the same curve to 1e-3
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            **wide, hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=heads,
            intermediate_size=4 * args.hidden, max_position_embeddings=args.max_length,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    pretrain(model, tokenizer, rows, args)
    save_folder(folder, model, tokenizer)
    return folder


def train_tokenizer(rows: Sequence[RankedPrompt], vocab: int, kind: str) -> Any:
    """Byte-level BPE on the training answers; no chat template, so conversations are Nectar transcripts."""
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((a.answer for row in rows for a in row.answers), trainer)
    closing = " </s>" if kind == "encoder" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{closing}", special_tokens=[("<s>", 1), ("</s>", 2)] if closing else [("<s>", 1)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    if kind == "encoder":
        names |= {"cls_token": "<s>", "sep_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def pretrain(model: Any, tokenizer: Any, rows: Sequence[RankedPrompt], args: argparse.Namespace) -> None:
    """Language modelling (decoder) or filling in 15 % masked tokens (encoder) on the training conversations."""
    if not args.pretrain_steps:
        return
    encoder = Encoder(tokenizer, args.max_length)
    full = encoder.conversations([(row.prompt.messages, a.answer, True) for row in rows for a in row.answers])
    texts = [Encoded(row.ids[: args.max_length], 0) for row in full]  # the start of a text, not its end
    steps = plan.steps(len(texts), 64, 1, args.seed)[: args.pretrain_steps]
    optimizer, scheduler = make_optimizer(
        model,
        OptimizerSection(
            type=args.pretrain_optimizer,
            learning_rate=args.pretrain_rate,
            betas=(0.9, 0.98),
            warmup_fraction=0.1,
            schedule="cosine",
        ),
        len(steps),
    )
    accelerator, progress = make_accelerator(), RichProgress()
    progress.start("pretraining", len(steps))
    lengths = [len(t.ids) for t in texts]
    for step in steps:
        total, loss_sum = sum(lengths[i] for i in step), 0.0
        for batch in plan.micro_batches(step, lengths, 8192):
            loss = language_loss(model, [texts[i] for i in batch], tokenizer, args.kind) / total
            accelerator.backward(loss)
            loss_sum += loss.item()
        apply_step(accelerator, model.parameters(), optimizer, scheduler, 1.0)
        progress.advance(1, f"loss {loss_sum:.3f}")
    progress.finish()


def language_loss(model: Any, texts: Sequence[Encoded], tokenizer: Any, kind: str) -> torch.Tensor:
    """Mean cross-entropy of the predicted positions, times all tokens; only those positions go through the vocabulary layer."""
    padded = pad_right(texts, tokenizer.pad_token_id)
    wanted_BT = padded.mask_BT & (torch.rand(padded.ids_BT.shape) < PREDICTED[kind])
    wanted_BT[0, 1] = True  # never empty
    if kind == "decoder":
        hidden_BTD = model.transformer(padded.ids_BT).last_hidden_state[:, :-1]
        wanted_BT, target_BT = wanted_BT[:, 1:], padded.ids_BT[:, 1:]
        head = model.lm_head
    else:
        target_BT = padded.ids_BT
        masked_BT = padded.ids_BT.masked_fill(wanted_BT, tokenizer.mask_token_id)
        hidden_BTD = model.bert(masked_BT, attention_mask=padded.mask_BT.long()).last_hidden_state
        head = model.cls
    return torch.nn.functional.cross_entropy(head(hidden_BTD[wanted_BT]), target_BT[wanted_BT]) * padded.mask_BT.sum()


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────────


def evaluate(rows: Sequence[RankedPrompt], scores: Scores) -> dict[str, Any]:
    """Pair accuracy (ties ½) and top-1 accuracy (ties shared), mean over rankings, intervals clustered by instruction."""
    clusters = [conversation_key(row.prompt.messages) for row in rows]
    pairs, tops = zip(*(marks(given) for given in scores), strict=True)
    found = {}
    for name, values in (("pair_accuracy", pairs), ("top1", tops)):
        interval = bootstrap_mean(values, clusters, resamples=2000, seed=0)
        found[name] = {"mean": round(interval.mean, 4), "ci": [round(interval.low, 4), round(interval.high, 4)]}
    return found


def marks(scores: Sequence[float]) -> tuple[float, float]:
    """(pair accuracy, top-1) of one ranking's scores, given best answer first."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in combinations(scores, 2)]
    return sum(wins) / len(wins), 1.0 / scores.count(scores[0]) if scores[0] == max(scores) else 0.0


def baselines(rows_train: Sequence[RankedPrompt], rows: Sequence[RankedPrompt]) -> dict[str, Any]:
    """The two trivial scorers on the same rankings."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for row in rows_train:
        for answer in row.answers:
            ranks[answer.model].append(answer.rank)
    mean_rank = {model: sum(r) / len(r) for model, r in ranks.items()}
    return {
        "longest answer": evaluate(rows, [[float(len(a.answer)) for a in row.answers] for row in rows]),
        "average rank of the model": evaluate(rows, [[-mean_rank.get(a.model, 4.0) for a in row.answers] for row in rows]),
    }


def model_scores(folder: Path, rows: Sequence[RankedPrompt]) -> Scores:
    """Rewards of a trained folder, standardised by the mean and deviation stored with it."""
    conversations = [(row.prompt.messages, a.answer, True) for row in rows for a in row.answers]
    stored = load_scalar(folder).statistics
    rewards = iter(score_conversations(folder, conversations, progress=RichProgress()))
    return [[(next(rewards) - stored["mean"]) / stored["std"] for _ in row.answers] for row in rows]


def table(results: dict[str, Any], summary: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| scorer | pairs | top-1 |", "|---|---|---|"]
    lines += [f"| {name} | {cell(found['pair_accuracy'])} | {cell(found['top1'])} |" for name, found in results.items()]
    counts = ", ".join(
        f"{k} {summary['rankings'][k]} rankings / {summary['instructions'][k]} instructions" for k in summary["rankings"]
    )
    return "\n".join([*lines, "", f"judged on {summary['split']}; {counts}; {summary['cpu_seconds']} CPU-seconds"])


def cell(found: dict[str, Any]) -> str:
    return f"{found['mean']:.3f} [{found['ci'][0]:.3f}, {found['ci'][1]:.3f}]"


if __name__ == "__main__":
    main()
