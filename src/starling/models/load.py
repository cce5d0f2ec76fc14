"""Model folders: read and write ordinary transformers folders, safetensors only, never code from a folder.

Weights are read in fp32 whatever the file holds: it is the master copy; mixed precision is the training loop's matter.
Dropout is set to 0 for a model that is trained by preference (its loss compares sequences that must see the same network).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from starling.errors import InputError
from starling.models.scalar_head import ScalarHead

log = logging.getLogger(__name__)

PAD_TOKEN = "<|pad|>"


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer of a local folder, unchanged.

    Raises:
        InputError: the folder or its tokenizer is missing or unreadable.
    """
    return _from_folder(AutoTokenizer, path, "tokenizer")


def load_causal(path: Path | str) -> Any:
    """The language model of a local folder, in fp32, in evaluation mode.

    Raises:
        InputError: the folder is missing, has no safetensors, or is no causal language model.
    """
    return _from_folder(AutoModelForCausalLM, path, "causal language model", dtype=torch.float32, use_safetensors=True).eval()


def load_scalar(path: Path | str) -> ScalarHead:
    """A trained reward model, in evaluation mode.

    Raises:
        InputError: the folder is no *ForSequenceClassification with one output, or its head is missing.
    """
    model, missing = _classifier(path, _scalar_config(path))
    if missing:
        raise InputError(
            f"The folder holds no reward head: {', '.join(missing)} would be random",
            where=str(path),
            cure="name a folder written by `starling train-reward`, not a backbone",
        )
    return ScalarHead(model.eval())


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
        model, _ = _classifier(path, _without_dropout(_scalar_config(path)))
        _give_pad_token(model, tokenizer)
    head = ScalarHead(model.eval())
    _check_pooling(head, tokenizer)
    return head


def save_folder(path: Path | str, model: Any, tokenizer: Any) -> None:
    """Write a transformers folder (config, safetensors, tokenizer); the same weights give the same bytes.

    `model` is a transformers model or a `ScalarHead`.
    """
    inner = model.model if isinstance(model, ScalarHead) else model
    with _quiet():
        inner.save_pretrained(path)
        tokenizer.save_pretrained(path)


def longest_input(model: Any) -> int | None:
    """Tokens that the model's positions allow, None if it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    # roberta's family numbers positions from pad_token_id + 1 inside the same table
    offset = model.config.pad_token_id + 1 if "roberta" in str(model.config.model_type) else 0
    return int(limit) - int(offset)


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


def _classifier(path: Path | str, config: Any) -> tuple[Any, list[str]]:
    """The classifier of a folder and the names of the weights that the folder did not have."""
    model, info = _from_folder(
        AutoModelForSequenceClassification,
        path,
        "sequence classifier",
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    return model, sorted(info["missing_keys"])


def _without_dropout(config: Any) -> Any:
    """Every dropout rate of the config at 0: in every architecture they are floats with "drop" in their name."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    return config


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
def _check_pooling(head: ScalarHead, tokenizer: Any) -> None:
    """Two short padded rows through the class's own forward and through ours must agree."""
    if not head.is_decoder:
        return
    pad = tokenizer.pad_token_id
    token = next(i for i in range(len(tokenizer)) if i != pad)
    ids_BT = torch.tensor([[token, token, token], [token, pad, pad]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    own = head.model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits[:, 0]
    ours = head.rewards(ids_BT, mask_BT, torch.tensor([2, 0]))
    if not torch.allclose(own, ours, atol=1e-4, rtol=1e-4):
        raise InputError(
            f"{type(head.model).__name__} pools its last token in a way that Starling does not know",
            where=str(head.model.config.name_or_path),
            cure="use another backbone",
        )
