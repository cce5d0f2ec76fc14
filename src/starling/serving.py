"""From [models] in the settings to endpoints: the one place that knows which kind of model answers in which way.

    openai, anthropic    HttpEndpoint    a server; models that name the same key share its limits
                         BatchApiEndpoint, when the settings have a `batch`
    local                BatchEndpoint   a transformers folder, sampled here
    microworld-speaker   BatchEndpoint   a folder that the world stage trained
    microworld-judge     ScriptedEndpoint

A local model is loaded when its first unanswered request comes, and one at a time: a pool is asked model by model. What
changes a local model's answers (its weights, the run's seed) stands in the revision of its `ModelRef`, so the journal
never gives the answers of one model to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from starling.artifacts import open_artifact
from starling.config import Config, LocalModel, MicroworldJudge, MicroworldSpeaker, ServerModel, journal_name
from starling.content import content_of
from starling.endpoint import BatchEndpoint, Endpoint, Engine, HttpEndpoint, KeyRing, Reply, Request, ScriptedEndpoint
from starling.endpoint.batches import BatchApiEndpoint
from starling.errors import ConfigError
from starling.journal import Budget, Journal
from starling.records import ModelRef, Sampling, content_hash
from starling.rundir import JOURNAL_FILE as JOURNAL_FILE


class Endpoints:
    """The endpoints of one run, made when first asked for; the journal is opened with the first of them.

    Use as a context manager: the journal is closed, and removed again when it was made here and nothing was asked.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = config.run.dir / JOURNAL_FILE
        self._journal: Journal | None = None
        self._made: dict[str, Endpoint] = {}
        self._new_journal = not self._path.exists()
        self._loaded = _OneEngine(config)
        self._keys = KeyRing(config.keys)

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._journal is None:
            return
        unused = self._new_journal and self._journal.is_empty()
        self._journal.close()
        if unused:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def pool(self) -> dict[str, Endpoint]:
        """The models that answer prompts, by label, in the order of the settings."""
        return {name: self.get(name) for name in (self._config.responses.names if self._config.responses else ())}

    def judge(self) -> Endpoint | None:
        """The judge, when the run has one."""
        return self.get(self._config.ranking.judge) if self._config.ranking else None

    def get(self, name: str) -> Endpoint:
        """The endpoint of the model `name` under [models]."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def folder(self, name: str, path: Path, version: str, *, batch: int, sampling: Sampling) -> Endpoint:
        """The endpoint of a folder that is no model under [models]: the run's own base or tuned policy.

        Args:
            name: what the journal calls it.
            path: a transformers folder.
            version: a hash of what it holds.
            batch: rows decoded together.
            sampling: how replies are drawn.
        """
        settings = LocalModel(type="local", path=path, batch=batch, sampling=sampling)
        return self._local(settings, name, path, f"{version[:16]}:{self._config.run.seed}")

    def _open_journal(self) -> Journal:
        if self._journal is None:
            run = self._config.run
            self._journal = Journal(self._path, Budget(run.budget_calls, run.budget_tokens, run.budget_dollars))
        return self._journal

    def _make(self, name: str) -> Endpoint:
        settings, seed = self._config.models[name], self._config.run.seed
        journal = self._open_journal()
        if isinstance(settings, ServerModel):
            return _behind_server(name, settings, journal, self._keys)
        if isinstance(settings, MicroworldJudge):
            from starling.microworld import judge  # the only kind of judge that is code of ours

            revision = content_hash([settings.model_dump(mode="json"), seed], 16)
            model = ModelRef(provider=settings.type, name=journal_name(name, settings), revision=revision)
            return ScriptedEndpoint(model, partial(judge.reply, settings=settings, seed=seed), journal)
        if isinstance(settings, MicroworldSpeaker):
            world = open_artifact(self._config.run.dir, "world")
            label, folder = journal_name(name, settings), world.path / settings.checkpoint
            version = world.fingerprint
        else:
            label, folder, version = journal_name(name, settings), settings.path, content_of(settings.path)
        return self._local(settings, label, folder, f"{version[:16]}:{seed}")

    def _local(self, settings: LocalModel | MicroworldSpeaker, label: str, folder: Path, revision: str) -> Endpoint:
        model = ModelRef(provider="local", name=label, revision=revision, sampling=settings.sampling)
        return BatchEndpoint(model, _Lazy(self._loaded, folder, settings.batch), self._open_journal(), settings.batch)


def _behind_server(name: str, settings: ServerModel, journal: Journal, keys: KeyRing) -> Endpoint:
    """One by one or in batches; never one by one while a batch may bring the same answers.

    Raises:
        ConfigError: the settings have no `batch`, but batches of this model are under way.
    """
    if settings.batch is not None:
        return BatchApiEndpoint(name, settings, journal)
    if under_way := journal.batches.under_way(settings.name):
        raise ConfigError(
            f"{len(under_way)} batches of the model '{settings.name}' are under way: asking one by one would pay for them twice",
            where=f"models.{name}, batches in {journal.path}",
            cure=f"collect them first (--set models.{name}.batch={{}}), or give them up: sqlite3 {journal.path} "
            f"\"UPDATE batches SET state = 'lost' WHERE model = '{settings.name}' AND state IN ('creating', 'running')\"",
        )
    return HttpEndpoint(name, settings, journal, keys)


class _OneEngine:
    """Keeps the one local model that was used last."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._key: tuple[Path, int] | None = None
        self._engine: Engine | None = None

    def get(self, folder: Path, batch: int) -> Engine:
        if self._engine is None or self._key != (folder, batch):
            from starling.models.load import load_causal, load_tokenizer
            from starling.models.local_engine import LocalEngine
            from starling.training.loop import set_determinism

            set_determinism(self._config.run.seed, self._config.run.threads)
            self._engine = None  # let go of the last model before the next one is read
            self._engine = LocalEngine(load_causal(folder), load_tokenizer(folder), batch=batch, seed=self._config.run.seed)
            self._key = (folder, batch)
        return self._engine


class _Lazy:
    """An engine that is loaded by its first request."""

    def __init__(self, loaded: _OneEngine, folder: Path, batch: int) -> None:
        self._loaded = loaded
        self._folder = folder
        self._batch = batch

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return self._loaded.get(self._folder, self._batch).answer(requests)
