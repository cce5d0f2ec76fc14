"""Stage 10: folders that can be put on a hub as they are: dataset, reward model and policy, each with its card.

    dataset/        README.md, data/train.parquet …      datasets.load_dataset(folder)
    reward-model/   README.md, a transformers folder     AutoModelForSequenceClassification.from_pretrained(folder)
    policy/         README.md, a transformers folder     AutoModelForCausalLM.from_pretrained(folder)

The cards' front matter follows the Hugging Face hub's card format (its values are written as JSON, which is YAML). Their
numbers come from the artifacts, and what the calls came to from the journal; what a run did not measure is said to be not
measured. Nothing is uploaded. Parts that a run did not make are left out. Times are left out too, so equal runs give equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from starling.artifacts import MANIFEST, Artifact, open_artifact
from starling.config import Model, PublishSection
from starling.errors import ArtifactError
from starling.lineage import GUARD_FOLDER
from starling.publish.dataset import dataset_card
from starling.publish.models import policy_card, reward_card
from starling.publish.source import Source

__all__ = ["write"]

READS = ("prompts", "responses", "ranking", "dataset", "reward", "policy", "evaluate")


def write(run_dir: Path, out: Path, settings: PublishSection, models: Mapping[str, Model] | None = None) -> list[Path]:
    """Write the folders of what the run has made into `out`; returns them.

    Args:
        run_dir: the run.
        out: where the folders are made.
        settings: licences and names on the cards.
        models: the run's models by name, for their prices and their calls; without them the cost is not stated.

    Raises:
        ArtifactError: the run has neither dataset nor models, or an artifact is damaged.
    """
    found = {stage: open_artifact(run_dir, stage) for stage in READS if (run_dir / stage / MANIFEST).exists()}
    source = Source(run_dir, found, settings, models or {})
    made = []
    if "dataset" in found:
        made.append(_write_dataset(source, out / "dataset"))
    if "reward" in found:
        made.append(_copy_model(found["reward"], out / "reward-model", reward_card(source)))
    if "policy" in found:
        made.append(_copy_model(found["policy"], out / "policy", policy_card(source)))
    if not made:
        raise ArtifactError("There is nothing to publish yet", where=str(run_dir), cure="`starling run CONFIG` first")
    return made


def _write_dataset(source: Source, folder: Path) -> Path:
    artifact = source.found["dataset"]
    splits = [name.removesuffix(".parquet") for name in artifact.files if name.endswith(".parquet")]
    (folder / "data").mkdir(parents=True)
    for split in splits:
        shutil.copyfile(artifact.path / f"{split}.parquet", folder / "data" / f"{split}.parquet")
    (folder / "README.md").write_text(dataset_card(source, splits), encoding="utf-8")
    return folder


def _copy_model(artifact: Artifact, folder: Path, card: str) -> Path:
    folder.mkdir(parents=True)
    for name in artifact.files:
        if name.startswith(f"{GUARD_FOLDER}/"):  # a tool of this run's tuning, not the model of the card
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder
