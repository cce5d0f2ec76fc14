"""One optimiser step's forward and backward passes, micro-batch by micro-batch, on one process or many alike.

A loss that is not finite, memory that runs out and a request to stop may come to one process alone; all of them hear of it in
`agree`, which stands before the last backward pass: nothing has been updated then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from starling.errors import TrainingError
from starling.training.engine import Engine

Batches = Sequence[Sequence[int]]
Agree = Callable[[Batches, list[torch.Tensor], bool], None]
"""Called with the micro-batches, their losses so far, and whether memory ran out, by all processes at once."""


class OutOfMemory(TrainingError):
    """The memory of a device ran out in a micro-batch, on one process at least; raised on all alike, gradients cleared."""


def accumulate(
    engine: Engine,
    batches: Batches,
    loss_of: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    one_pass: Callable[[], torch.Tensor],
    width: int,
    agree: Agree,
) -> torch.Tensor:
    """Gradients of a step; returns this process's share of the numbers that `loss_of` gives, the loss first.

    Args:
        engine: holds the module.
        batches: this process's micro-batches, as many as on every other; empty ones where there is less to do.
        loss_of: of a micro-batch's items, its share of the step's loss and its share of [width − 1] further numbers.
        one_pass: some number that depends on every trained weight, by one short forward pass.
        width: of the numbers, the loss included.
        agree: see `Agree`; it raises what stops the step.

    Raises:
        OutOfMemory: at the end of a step on one process, if `agree` let it pass; where weights are spread, at once.
    """
    losses: list[torch.Tensor] = []
    sums = torch.zeros(width, device=engine.device)
    full = False
    for i, items in enumerate(batches):
        last = i == len(batches) - 1
        with engine.micro_batch(last):
            loss: torch.Tensor | None = None
            if not full:
                try:
                    loss, numbers = _forward(engine, items, loss_of, one_pass, width)
                    sums += numbers
                    losses.append(loss.detach())
                except torch.OutOfMemoryError as error:
                    full, loss = True, None
                    _unless_spread(engine, error)
            if last:
                agree(batches, losses, full)
            if loss is not None and not full:
                try:
                    engine.backward(loss)
                except torch.OutOfMemoryError as error:
                    full = True
                    if last and engine.ranks > 1:  # the others wait for these gradients
                        _give_up(error)
                    _unless_spread(engine, error)
    if full:
        agree(batches, losses, full)
        raise _exhausted()
    return sums


def _forward(
    engine: Engine,
    items: Sequence[int],
    loss_of: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
    one_pass: Callable[[], torch.Tensor],
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    if items:
        loss, numbers = loss_of(items)
        numbers = torch.cat([loss.detach()[None], numbers])
    else:  # others have more to do, and need this process for it
        loss, numbers = 0.0 * one_pass(), torch.zeros(width, device=engine.device)
    return engine.even_out(loss, one_pass), numbers


def _unless_spread(engine: Engine, error: BaseException) -> None:
    if engine.spread:  # the others are in the middle of the same pass, and cannot be told
        _give_up(error)


def _give_up(error: BaseException) -> NoReturn:
    raise TrainingError(
        f"The memory of the device ran out: {str(error)[:200]}",
        where="a micro-batch of a step that several processes share",
        cure="lower micro_tokens (it never changes a result) and start again: it goes on from the last checkpoint",
    ) from error


def _exhausted() -> OutOfMemory:
    return OutOfMemory(
        "The memory of the device ran out in a micro-batch",
        where="a step of the training",
        cure="lower micro_tokens (it never changes a result) and start again: it goes on from the last checkpoint",
    )


def agreed(engine: Engine, losses: Sequence[torch.Tensor], full: bool, asked_to_stop: bool) -> tuple[bool, bool, bool]:
    """Over all processes: (memory ran out, a loss is not finite, one was asked to stop). All call it at once.

    Raises:
        OutOfMemory: memory ran out somewhere; gradients are cleared.
    """
    bad = bool((~torch.stack(list(losses)).isfinite()).any()) if losses else False
    said = engine.largest(torch.tensor([full, bad, asked_to_stop], device=engine.device).int()).tolist()
    if said[0]:
        engine.clear()
        raise _exhausted()
    return bool(said[0]), bool(said[1]), bool(said[2])


def refuse(engine: Engine, folder: Path, names: Sequence[str], what: str, where: str, further: Mapping[str, Any]) -> NoReturn:
    """Say which prompts a step was refused over, and stop; all processes together, each with its own."""
    found = list(dict.fromkeys(engine.gathered(list(names))))
    path = folder / "non_finite.json"
    if engine.first:
        path.write_text(json.dumps({**further, "prompt_ids": found}, indent=1), encoding="utf-8")
    raise TrainingError(what, where=f"{where}; its prompts are in {path}", cure="lower the learning rate; look at those prompts")


@contextmanager
def among_others(engine: Engine, where: str) -> Iterator[None]:
    """An error that comes of another process's end says so.

    Raises:
        TrainingError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if engine.ranks > 1 and _is_lost(error):
            raise TrainingError(
                f"Another process of this training has ended: {str(error).splitlines()[0][:200]}",
                where=f"process {engine.rank} of {engine.ranks}, {where}",
                cure="see what the other one said; the same command goes on from the last checkpoint",
            ) from error
        raise


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
    )
