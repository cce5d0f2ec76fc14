"""Reward models on real rankings: small transformers of our own making against the bars of the data set.

Data: 5,066 seven-wise rankings of 56 models' answers to 644 AlpacaEval instructions in Nectar's schema, ordered by
GPT-4-turbo's preference over one common baseline (tatsu-lab/alpaca_eval, CC-BY-NC-4.0). No pretrained weights are used:
the tokenizer, the backbone (GPT-2 or BERT shape, briefly pretrained on the training answers if asked to) and the reward
model are all made here, on one CPU thread, with `starling.reward.train`.

Instructions are split by `starling.chat.split_of` (20 % test, 10 % validation): no instruction is on both sides. Every
number is over the test instructions, with a 95 % bootstrap interval that resamples instructions. Baselines, on the same rankings:

    longest answer            the longer text is better
    average rank of the model the answering model's mean rank in the training rankings (it sees the model's name)

    python benchmarks/nectar_like.py DATA/nectar_like/train.jsonl.gz --kind decoder --out runs/nectar_like
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from starling.chat import conversation_key, split_of
from starling.config import OptimizerSection, RewardSection
from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import save_folder
from starling.models.score import score_conversations
from starling.nectar import import_nectar
from starling.progress import RichProgress
from starling.records import RankedPrompt
from starling.reward.train import train
from starling.stats import bootstrap_mean
from starling.training import plan
from starling.training.loop import apply_step, make_accelerator, make_optimizer, set_determinism

Scorer = Callable[[RankedPrompt], Sequence[float]]


def main() -> None:
    """Train one model, print the table, write OUT/KIND.json."""
    args = arguments()
    started = time.process_time()
    rows, report = import_nectar(args.data)
    splits: dict[str, list[RankedPrompt]] = defaultdict(list)
    for row in rows:
        splits[split_of(row.prompt.messages, validation=0.1, test=0.2)].append(row)
    if args.rankings:
        splits["train"] = random.Random(args.seed).sample(splits["train"], args.rankings)
    folder = args.out / args.kind
    set_determinism(args.seed, threads=1)
    backbone = build_backbone(args, splits["train"], folder / "backbone")
    metrics = train(
        splits["train"],
        random.Random(0).sample(splits["validation"], 96),  # for the log; the table below uses every ranking
        backbone=backbone,
        out=folder / "reward",
        work=folder / "work",
        settings=reward_settings(args),
        seed=args.seed,
        progress=RichProgress(),
    )
    judged = splits["validation" if args.validation_only else "test"]
    results = {
        **baselines(splits["train"], judged),
        f"{args.kind}, trained here": evaluate(judged, model_scorer(folder / "reward", judged)),
    }
    summary = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "instructions": {k: len({conversation_key(r.prompt.messages) for r in v}) for k, v in splits.items()},
        "rankings": {k: len(v) for k, v in splits.items()},
        "rejected_rows": len(report.rejected),
        "training": metrics,
        "cpu_seconds": round(time.process_time() - started),
        "results": results,
    }
    (args.out / f"{args.kind}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(results, summary))


def arguments() -> argparse.Namespace:
    """The command line; the defaults are the settings behind docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--kind", choices=("decoder", "encoder"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--pretrain-steps", type=int, default=0, help="steps of language modelling on 64 training answers each")
    parser.add_argument("--pretrain-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--per-step", type=int, default=16, help="rankings per optimiser step")
    parser.add_argument("--rankings", type=int, default=0, help="train on a random subsample of this size; 0 = all")
    parser.add_argument("--checkpoint-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation-only", action="store_true", help="judge on validation instructions: for choosing settings")
    return parser.parse_args()


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
    heads = max(1, args.hidden // 32)
    torch.manual_seed(args.seed)
    if args.kind == "decoder":
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config: Any = transformers.GPT2Config(
            **wide, **ids, n_embd=args.hidden, n_layer=args.layers, n_head=heads, n_positions=args.max_length,
            activation_function="gelu_pytorch_tanh",  # the default gelu_new is the same function, composed of slow steps
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
        model.parameters(), OptimizerSection(learning_rate=args.pretrain_rate, betas=(0.9, 0.98), schedule="cosine"), len(steps)
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
    """Summed cross-entropy; the vocabulary layer runs on the positions that are predicted only."""
    padded = pad_right(texts, tokenizer.pad_token_id)
    if kind == "decoder":
        hidden_BTD = model.transformer(padded.ids_BT).last_hidden_state[:, :-1]
        wanted_BT, target_BT = padded.mask_BT[:, 1:], padded.ids_BT[:, 1:]
        head = model.lm_head
    else:
        wanted_BT = padded.mask_BT & (torch.rand(padded.ids_BT.shape) < 0.15)
        wanted_BT[0, 0] = True  # never empty
        target_BT = padded.ids_BT
        masked_BT = padded.ids_BT.masked_fill(wanted_BT, tokenizer.mask_token_id)
        hidden_BTD = model.bert(masked_BT, attention_mask=padded.mask_BT.long()).last_hidden_state
        head = model.cls
    return torch.nn.functional.cross_entropy(head(hidden_BTD[wanted_BT]), target_BT[wanted_BT], reduction="sum")


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────────


def evaluate(rows: Sequence[RankedPrompt], scorer: Scorer) -> dict[str, Any]:
    """Pair accuracy (ties ½) and top-1 accuracy (ties shared), mean over rankings, intervals clustered by instruction."""
    clusters = [conversation_key(row.prompt.messages) for row in rows]
    pairs, tops = [], []
    for row in rows:
        scores = list(scorer(row))
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in combinations(scores, 2)]
        pairs.append(sum(wins) / len(wins))
        tops.append(1.0 / scores.count(scores[0]) if scores[0] == max(scores) else 0.0)
    found = {}
    for name, values in (("pair_accuracy", pairs), ("top1", tops)):
        interval = bootstrap_mean(values, clusters, resamples=2000, seed=0)
        found[name] = {"mean": round(interval.mean, 4), "ci": [round(interval.low, 4), round(interval.high, 4)]}
    return found


def baselines(rows_train: Sequence[RankedPrompt], rows: Sequence[RankedPrompt]) -> dict[str, Any]:
    """The two trivial scorers on the same rankings."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for row in rows_train:
        for answer in row.answers:
            ranks[answer.model].append(answer.rank)
    mean_rank = {model: sum(r) / len(r) for model, r in ranks.items()}
    return {
        "longest answer": evaluate(rows, lambda row: [len(a.answer) for a in row.answers]),
        "average rank of the model": evaluate(rows, lambda row: [-mean_rank.get(a.model, 4.0) for a in row.answers]),
    }


def model_scorer(folder: Path, rows: Sequence[RankedPrompt]) -> Scorer:
    """Rewards of a trained folder, computed once for all rows."""
    conversations = [(row.prompt.messages, a.answer, True) for row in rows for a in row.answers]
    known = dict(zip(conversations, score_conversations(folder, conversations, progress=RichProgress()), strict=True))
    return lambda row: [known[row.prompt.messages, a.answer, True] for a in row.answers]


def table(results: dict[str, Any], summary: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| scorer | pairs | top-1 |", "|---|---|---|"]
    for name, found in results.items():
        cells = [f"{found[m]['mean']:.3f} [{found[m]['ci'][0]:.3f}, {found[m]['ci'][1]:.3f}]" for m in ("pair_accuracy", "top1")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    counts = ", ".join(
        f"{k} {summary['rankings'][k]} rankings / {summary['instructions'][k]} instructions" for k in summary["rankings"]
    )
    return "\n".join([*lines, "", f"{counts}; {summary['cpu_seconds']} CPU-seconds"])


if __name__ == "__main__":
    main()
