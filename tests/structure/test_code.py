"""What holds for the code as a whole: layers, types, style, imports, settings that are read, functions that stay readable."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from starling import config as settings
from starling.config import Config

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "starling"
MODULES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors")


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_layers_and_forbidden_imports() -> None:
    result = ran(sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())")
    assert result.returncode == 0, result.stdout


def test_ruff() -> None:
    result = ran(sys.executable, "-m", "ruff", "check", ".")
    assert result.returncode == 0, result.stdout


def test_types() -> None:
    result = ran(sys.executable, "-m", "mypy")
    assert result.returncode == 0, result.stdout


# ── imports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def loaded_after(code: str) -> set[str]:
    """Top-level and starling modules in a fresh interpreter after `code`."""
    result = ran(sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)")
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def test_help_imports_next_to_nothing() -> None:
    loaded = loaded_after("from starling.cli import call; call(['--help'])")
    too_much = {*HEAVY, "pyarrow", "matplotlib", "aiohttp", "pydantic", "numpy", "rich", "starling.config", "starling.pipeline"}
    assert not loaded & too_much


def test_the_command_and_the_pipeline_import_no_torch() -> None:
    loaded = loaded_after("import starling.cli, starling.pipeline, starling.plan, starling.interact, starling.imported")
    assert not loaded & set(HEAVY)


def test_the_package_itself_imports_nothing() -> None:
    assert {m for m in loaded_after("import starling") if m.startswith("starling.")} == set()


def test_every_name_in_all_exists() -> None:
    for path in MODULES:
        targets = [t.id for n in tree(path).body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        if "__all__" in targets:
            relative = path.relative_to(SOURCE.parent).with_suffix("")
            module = importlib.import_module(".".join(p for p in relative.parts if p != "__init__"))
            assert [n for n in module.__all__ if not hasattr(module, n)] == [], path


# ── habits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_modules_and_functions_stay_readable(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "a file opens with what it is"
    assert len(path.read_text("utf-8").splitlines()) <= 500
    long = [f"{f.name}: {f.end_lineno - f.lineno + 1}" for f in functions(path) if f.end_lineno and f.end_lineno - f.lineno >= 80]
    assert long == []


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for found in ast.walk(node):
        if isinstance(found, ast.Call):
            yield ast.unparse(found.func), found


def test_nothing_evaluates_text_or_unpickles() -> None:
    for path in MODULES:
        for name, call in calls(tree(path)):
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name not in ("eval", "exec", "__import__"), path
            assert not name.startswith(("pickle.", "marshal.", "shelve.")), path
            assert name != "torch.load" or keywords.get("weights_only") == "True", path
            assert keywords.get("trust_remote_code", "False") == "False", path


def test_hash_of_python_is_not_used() -> None:
    """`hash()` of a text differs from process to process; whatever must be the same twice uses content_hash."""
    for path in MODULES:
        assert "hash" not in [name for name, _ in calls(tree(path))], path


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sections() -> list[type[BaseModel]]:
    found = [c for c in vars(settings).values() if isinstance(c, type) and issubclass(c, settings.Section)]
    assert Config in found
    return [c for c in found if c is not settings.Section]


def test_every_setting_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in MODULES
        if path.parent != SOURCE / "config"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = [f"{c.__name__}.{name}" for c in sections() for name in c.model_fields if name not in read]
    assert unread == []


def test_every_setting_has_a_sentence() -> None:
    silent = [
        f"{c.__name__}.{name}"
        for c in sections()
        for name, field in c.model_fields.items()
        if name != "type" and not field.description and not _is_section(field.annotation)
    ]
    assert silent == []


def _is_section(annotation: object) -> bool:
    kinds = (annotation, *getattr(annotation, "__args__", ()))
    return any(isinstance(k, type) and issubclass(k, settings.Section) for k in kinds)
