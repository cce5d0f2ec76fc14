"""A reward model beside the tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are faster on one, and bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reward_folder(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    head = load_backbone_as_scalar(backbone("llama"), 0)
    head.set_statistics(0.5, 2.0)
    save_folder(folder, head, load_tokenizer(backbone("llama")))
    return folder
