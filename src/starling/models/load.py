"""Model folders: read and write ordinary transformers folders, safetensors only, never code from a folder.

Weights are read in fp32 whatever the file holds: it is the master copy; mixed precision is the training loop's matter.
On a CPU their linear layers compute through oneDNN (`cpu_linear`).
Dropout is set to 0 for a model that is trained by preference (its loss compares sequences that must see the same network).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from starling.errors import InputError
from starling.models.cpu_linear import use_onednn
from starling.models.scalar_head import ScalarHead

log = logging.getLogger(__name__)

PAD_TOKEN = "<|pad|>"
STATISTICS_FILE = "starling.json"
"""Beside an adapter, which has no config of its own: mean and deviation of the scores on validation."""
_NO_LIMIT = 1 << 40
"""transformers writes 10³⁰ where a tokenizer has no longest input."""


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer of a local folder, unchanged.

    Raises:
        InputError: the folder or its tokenizer is missing or unreadable.
    """
    return _from_folder(AutoTokenizer, path, "tokenizer")


def load_reward_tokenizer(path: Path | str, base: Path | None = None) -> Any:
    """The tokenizer that belongs to a reward model; an adapter without one of its own has its base's.

    Raises:
        InputError: there is none, or it is unreadable.
    """
    if not is_adapter(path) or (Path(path) / "tokenizer_config.json").is_file():
        return load_tokenizer(path)
    return load_tokenizer(_base_of(Path(path), base))


def load_config(path: Path | str) -> Any:
    """The config of a model folder.

    Raises:
        InputError: the folder or its config is missing or unreadable.
    """
    return _from_folder(AutoConfig, path, "model configuration")


def reward_class(config: Any) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The *ForSequenceClassification of a config: its name, and the shapes of its weights by name; none is in memory.

    Raises:
        InputError: transformers has no such class for it.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(
            f"transformers has no sequence classifier for model_type {config.model_type!r}",
            where="the model's config",
            cure="use a model of the llama family",
        ) from error
    return type(model).__name__, {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def load_causal(path: Path | str) -> Any:
    """The language model of a local folder, in fp32, in evaluation mode.

    Raises:
        InputError: the folder is missing, has no safetensors, or is no causal language model.
    """
    model = _from_folder(AutoModelForCausalLM, path, "causal language model", dtype=torch.float32, use_safetensors=True)
    use_onednn(model)
    return model.eval()


def load_scalar(path: Path | str, base: Path | None = None, dtype: torch.dtype = torch.float32) -> ScalarHead:
    """A trained reward model, in evaluation mode: any *ForSequenceClassification with one output, or a peft adapter of one.

    Args:
        path: its folder; an adapter's folder holds adapter_config.json and is merged into its base.
        base: of an adapter, the folder of the model that it was trained on, if it does not lie where the adapter says.
        dtype: of the weights in memory; scores are fp32 either way.

    Raises:
        InputError: the folder is no *ForSequenceClassification with one output, its head is missing, or its class pools in a
            way that `ScalarHead` does not reproduce.
    """
    if is_adapter(path):
        head = ScalarHead(_merged(Path(path), base, dtype).eval())
        if statistics := _statistics(Path(path) / STATISTICS_FILE):
            head.set_statistics(**statistics)
    else:
        config = load_config(path)
        if config.num_labels > 2:  # 2 is what transformers fills in where a config says nothing
            raise InputError(
                f"A reward model has one output, this one has {config.num_labels}",
                where=str(path),
                cure="name a *ForSequenceClassification with num_labels = 1",
            )
        model, missing, unknown = _classifier(path, _scalar_config(path), dtype)
        if missing and any("v_head" in name for name in unknown):
            raise InputError(
                "The folder holds a reward model in the layout of Starling-RM-34B, which transformers does not read",
                where=str(path),
                cure="`starling export-reward` writes it in the standard layout",
            )
        if missing:
            raise InputError(
                f"The folder holds no reward head: {', '.join(missing[:4])} would be random",
                where=str(path),
                cure="name a folder written by `starling train-reward`, not a backbone",
            )
        head = ScalarHead(model.eval())
    _check_pooling(head)
    return head


def load_backbone_as_scalar(path: Path | str, seed: int, tokenizer: Any = None) -> ScalarHead:
    """A decoder or an encoder with a new, seeded head of one output, dropout 0, and a pad token that is not its end token.

    The head is initialised as transformers does for that class (normal, the config's initializer_range); the original
    used Linear's default. `tokenizer` (loaded from the folder if None) gains a pad token when it has none: pass the
    object that will be saved with the model.

    Raises:
        InputError: the folder cannot be read, or its class pools in a way that `ScalarHead` does not reproduce.
    """
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, _, _ = _classifier(path, without_dropout(_scalar_config(path)))
        _give_pad_token(model, tokenizer)
    head = ScalarHead(model.eval())
    _check_pooling(head)
    return head


def save_folder(path: Path | str, model: Any, tokenizer: Any) -> None:
    """Write a transformers folder (config, safetensors, tokenizer); the same weights give the same bytes.

    `model` is a transformers model or a `ScalarHead`.
    """
    inner = model.model if isinstance(model, ScalarHead) else model
    if isinstance(model, ScalarHead):
        declare_reward(inner.config)
    with _quiet():
        inner.save_pretrained(path)
        tokenizer.save_pretrained(path)


def save_weights(path: Path | str, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a transformers folder without tokenizer: the model's config, and these tensors in place of its weights.

    Args:
        path: the folder.
        model: a transformers model; it may carry adapters that `tensors` has merged in.
        tensors: every weight under the name that the model's class gives it.
    """
    with _quiet():
        model.save_pretrained(path, state_dict=dict(tensors))


def declare_reward(config: Any) -> None:
    """What other programs read in the config to report the bare score: transformers' pipeline and vLLM's /classify look at
    problem_type (else sigmoid), vLLM's /score and sentence-transformers' CrossEncoder at the name of an activation."""
    config.num_labels = 1
    config.problem_type = "regression"
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}


def longest_input(model: Any, tokenizer: Any = None) -> int | None:
    """Tokens that the model's positions allow, and its tokenizer's model_max_length if one is given; None if none says."""
    limits = []
    if tokenizer is not None and tokenizer.model_max_length < _NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        # roberta's family numbers positions from pad_token_id + 1 inside the same table
        offset = model.config.pad_token_id + 1 if "roberta" in str(model.config.model_type) else 0
        limits.append(int(positions) - int(offset))
    return min(limits, default=None)


def without_dropout(config: Any) -> Any:
    """Every dropout rate of the config at 0: in every architecture they are floats with "drop" in their name."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    return config


def _statistics(path: Path) -> dict[str, float]:
    """{"mean", "std"} of an adapter's scores; {} where there is no such file, or training had no validation rankings."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        return {name: float(found[name]) for name in ("mean", "std")} if found else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The score statistics are damaged: {error}", where=str(path), cure="copy the folder again") from None


def is_adapter(path: Path | str) -> bool:
    """Whether the folder holds a peft adapter instead of a whole model."""
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no load report from transformers: what matters of it is raised as an error here."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _from_folder(auto: Any, path: Path | str, what: str, **options: Any) -> Any:
    if not Path(path).is_dir():
        raise InputError(f"The folder of a {what} does not exist", where=str(path), cure="name a local transformers folder")
    try:
        with _quiet():
            return auto.from_pretrained(str(path), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError … for bad folders
        raise InputError(
            f"The {what} cannot be loaded: {' '.join(str(error).split())[:300]}",
            where=str(path),
            cure="check that the folder is complete and holds safetensors (no .bin, no code of its own)",
        ) from error


def _scalar_config(path: Path | str) -> Any:
    return _from_folder(AutoConfig, path, "model configuration", num_labels=1, problem_type="regression")


def _classifier(path: Path | str, config: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, list[str], list[str]]:
    """The classifier of a folder, the names of the weights that the folder did not have and of those nobody asked for."""
    model, info = _from_folder(
        AutoModelForSequenceClassification,
        path,
        "sequence classifier",
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # named here instead; transformers would only refer to its log
    )
    wrong = [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in sorted(info["mismatched_keys"])]
    if wrong:
        raise InputError(
            f"The weights are not those of a model with one output and this config: {'; '.join(wrong[:4])}",
            where=str(path),
            cure="name a *ForSequenceClassification with num_labels = 1, complete and with its own config",
        )
    use_onednn(model)
    return model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def _base_of(path: Path, base: Path | None) -> Path:
    """The folder of an adapter's base model: the one given, else the one that the adapter names."""
    try:
        named = json.loads((path / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise InputError(f"adapter_config.json is damaged: {error}", where=str(path), cure="copy the folder again") from None
    folder = base or Path(str(named))
    if not folder.is_dir():
        raise InputError(
            f"The adapter's base model {str(base or named)!r} is no folder here",
            where=str(path),
            cure="download it and name its folder: --base DIR",
        )
    return folder


def _merged(path: Path, base: Path | None, dtype: torch.dtype) -> Any:
    """The classifier of an adapter's base with the adapter merged into it.

    Raises:
        InputError: the base is not here, or the adapter has no reward head or weights that fit no part of the base.
    """
    from peft import PeftConfig, PeftModelForSequenceClassification, load_peft_weights, set_peft_model_state_dict

    folder = _base_of(path, base)
    settings = _from_folder(PeftConfig, path, "adapter configuration")
    if not (path / "adapter_model.safetensors").is_file():
        raise InputError("The adapter has no adapter_model.safetensors", where=str(path), cure="convert it to safetensors")
    weights = load_peft_weights(str(path), device="cpu")
    if not any(part in name.split(".") for name in weights for part in ("score", "classifier")):
        raise InputError(
            "The adapter holds no reward head: its scores would be random",
            where=str(path / "adapter_model.safetensors"),
            cure='train it with task_type "SEQ_CLS", which saves the head with it',
        )
    model, _, _ = _classifier(folder, _scalar_config(folder), dtype)
    with _quiet(), torch.random.fork_rng():
        adapted = PeftModelForSequenceClassification(model, settings)
        unknown = set_peft_model_state_dict(adapted, weights).unexpected_keys
        if unknown:
            raise InputError(
                f"The adapter has weights that its base has not: {', '.join(sorted(unknown)[:4])}",
                where=str(path),
                cure="name the base model that it was trained on: --base DIR",
            )
        return adapted.merge_and_unload()


def _give_pad_token(model: Any, tokenizer: Any) -> None:
    """Pad ≠ end, in the tokenizer and in the config: transformers finds the scored token by it."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        log.info("added the pad token %s with id %d", PAD_TOKEN, tokenizer.pad_token_id)
    table = model.get_input_embeddings()
    if tokenizer.pad_token_id >= table.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():  # never read; zero so that the bytes do not depend on a random draw
            model.get_input_embeddings().weight[tokenizer.pad_token_id] = 0.0
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _check_pooling(head: ScalarHead) -> None:
    """Short rows through the class's own forward and through ours must agree; padded ones too if the class knows its pad."""
    if not head.is_decoder:
        return
    pad = head.model.config.get_text_config().pad_token_id
    token = 1 if pad != 1 else 2
    rows = [([token] * 3, 2)] if pad is None else [([token] * 3, 2), ([token, pad, pad], 0)]
    ids_BT = torch.tensor([ids for ids, _ in rows])
    last_B = torch.tensor([last for _, last in rows])
    mask_BT = torch.arange(3) <= last_B[:, None]
    own_B = head.model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits[:, 0].float()
    ours_B = head.rewards(ids_BT, mask_BT, last_B)
    # in bf16 and fp16 the class rounds its logit, ours stays fp32
    tolerance = 1e-4 if head.model.dtype == torch.float32 else 3e-2
    if not torch.allclose(own_B, ours_B, atol=tolerance, rtol=tolerance, equal_nan=True):
        raise InputError(
            f"{type(head.model).__name__} pools its last token in a way that Starling does not know",
            where=str(head.model.config.name_or_path),
            cure="use another model",
        )
