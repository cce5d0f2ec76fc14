"""One paragraph about a settings file that does not validate, naming the key that was probably meant.

pydantic's own list speaks of locations in its unions and of every problem at once; here the first problem is put into words
and the nearest known key or value is looked for, beside the wrong one first and then in the whole tree.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

Schema = dict[str, Any]
Location = tuple[str | int, ...]

_WORDS = {
    "path_type": "it must be a path",
    "dict_type": "it must be a section of key = value lines",
    "model_type": "it must be a section of key = value lines",
    "model_attributes_type": "it must be a section of key = value lines",
}
"""pydantic's messages that speak of Python types."""
_QUIET = frozenset({"api_key_env", "base_url"})
"""Settings whose wrong value is not repeated: it may hold the secret itself."""


def explain(problems: Sequence[ErrorDetails], tree: Mapping[str, Any], schema: Schema) -> tuple[str, str]:
    """What is wrong, in words, and the dotted key it is about ("" for the whole file).

    Args:
        problems: pydantic's list, not empty. Unknown keys are told first: they often explain what seems to be missing.
        tree: the settings as read, before validation.
        schema: JSON schema of the whole tree.
    """
    # A list is also told to be too short when its items did not validate.
    inner = [p["loc"] for p in problems]
    problems = [p for p in problems if p["type"] != "too_short" or sum(loc[: len(p["loc"])] == p["loc"] for loc in inner) == 1]
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    location = _without_tags(first["loc"], tree, schema)
    if location and isinstance(location[-1], int) and isinstance(_raw_at(location[:-1], tree), str):
        location = location[:-1]  # one text in place of a list
    dotted = ".".join(str(part) for part in location)
    more = ""
    if len(problems) > 1:
        more = f" ({len(problems) - 1} more problem{'s' if len(problems) > 2 else ''} besides)"
    return _told(first, location, dotted, tree, schema) + more, dotted


def _told(problem: ErrorDetails, location: Location, dotted: str, tree: Mapping[str, Any], schema: Schema) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"Unknown setting '{dotted}'" + _nearest_key(location, tree, schema)
    if kind == "missing":
        return f"The setting '{dotted}' is required and missing"
    if kind == "union_tag_invalid":
        allowed = re.findall(r"'([^']*)'", str(context["expected_tags"]))
        return f"'{context['tag']}' is no type of '{dotted}'" + nearest(str(context["tag"]), allowed)
    if kind == "union_tag_not_found":
        allowed = list(_node_at(location, tree, schema).get("discriminator", {}).get("mapping", {}))
        return f"The setting '{dotted}.type' is required and missing (known: {', '.join(allowed)})"
    said = _WORDS.get(kind, problem["msg"].removeprefix("Value error, ").replace("Input should", "it must"))
    if kind == "value_error":
        return f"The setting '{dotted}' is wrong: {said}" if dotted else f"The settings contradict each other: {said}"
    if kind == "too_short":
        said = f"it must have at least {context['min_length']} entry"
    if kind == "string_pattern_mismatch":
        said = f"it must be this: {_node_text(location, tree, schema)}"
    hint = ""
    if kind in ("literal_error", "enum") and isinstance(problem["input"], str):
        hint = nearest(problem["input"], re.findall(r"'([^']*)'", str(context.get("expected", ""))), listed=False)
    given = "" if _QUIET & set(location) else f", given {repr(problem['input'])[:80]}"
    return f"The setting '{dotted}' is wrong: {said}{given}{hint}"


def nearest(name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """The end of a sentence: which known name was probably meant, else which there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f" (known: {', '.join(names) or 'none'})" if listed else ""


def _nearest_key(location: Location, tree: Mapping[str, Any], schema: Schema) -> str:
    """The key probably meant by an unknown one: a sibling, else one anywhere whose name is alike, near ones preferred."""
    name, parent = str(location[-1]), location[:-1]
    siblings = _resolve(_node_at(parent, tree, schema), schema, _raw_at(parent, tree)).get("properties", {})
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.75)
    if close:
        return f"; did you mean '{close[0]}'?"
    best, best_score = "", 0.8
    for key in _all_keys(schema, schema):
        parts = key.split(".")
        if parts == [str(part) for part in location]:
            return f": it does not go with type '{_type_at(parent, tree, schema)}'" + nearest(name, siblings)
        shared = next((i for i, (a, b) in enumerate(zip(parts, location, strict=False)) if a != b), len(parent))
        score = difflib.SequenceMatcher(None, name, parts[-1]).ratio() + 0.05 * shared
        if score > best_score:
            best, best_score = key, score
    return f"; did you mean '{best}'?" if best else nearest(name, siblings)


def _all_keys(node: Schema, schema: Schema, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree, in the order of the schema; `<name>` stands for names that the user chooses."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    for branch in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from _all_keys(branch, schema, prefix)
    if isinstance(node.get("additionalProperties"), dict):
        yield from _all_keys(node["additionalProperties"], schema, f"{prefix}<name>.")
    if isinstance(node.get("items"), dict):
        yield from _all_keys(node["items"], schema, prefix)
    for name, child in node.get("properties", {}).items():
        yield prefix + name
        yield from _all_keys(child, schema, f"{prefix}{name}.")


def _node_at(location: Location, tree: Mapping[str, Any], schema: Schema) -> Schema:
    """The schema of what stands at `location`; {} where the schema knows nothing."""
    node = schema
    for depth, part in enumerate(location):
        node = _resolve(node, schema, _raw_at(location[:depth], tree))
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            more = node.get("additionalProperties")
            node = more if isinstance(more, dict) else {}
    return node


def _node_text(location: Location, tree: Mapping[str, Any], schema: Schema) -> str:
    """The sentence under a setting; the entries of a list have that of the list."""
    while location and isinstance(location[-1], int):
        location = location[:-1]
    return str(_node_at(location, tree, schema).get("description", "see the schema")).rstrip(".")


def _resolve(node: Schema, schema: Schema, raw: Any) -> Schema:
    """Follow references, optional values and tagged unions; `raw` decides the branch of a union by its type."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "discriminator" in node:
            chosen = node["discriminator"]["mapping"].get(_tag(node, raw))
            node = {"$ref": chosen} if chosen else {}
        elif "anyOf" in node:
            node = next((branch for branch in node["anyOf"] if branch.get("type") != "null"), {})
        elif "allOf" in node:
            node = node["allOf"][0]
        else:
            return node


def _tag(node: Schema, raw: Any) -> Any:
    """The type of what the user wrote in place of a tagged union; a part without one has that of the default."""
    if not isinstance(raw, Mapping):
        return None
    return raw.get("type", node.get("default", {}).get("type"))


def _type_at(location: Location, tree: Mapping[str, Any], schema: Schema) -> Any:
    return _tag(_node_at(location, tree, schema), _raw_at(location, tree))


def _raw_at(location: Location, tree: Mapping[str, Any]) -> Any:
    """What the user wrote at `location`; None when nothing."""
    raw: Any = tree
    for part in location:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        else:
            return None
    return raw


def _without_tags(location: Location, tree: Mapping[str, Any], schema: Schema) -> Location:
    """pydantic puts the tag of a union into the location; the user never wrote it as a key."""
    kept: list[str | int] = []
    for part in location:
        raw = _raw_at(tuple(kept), tree)
        tag = isinstance(raw, Mapping) and part not in raw and part == _type_at(tuple(kept), tree, schema)
        if not tag:
            kept.append(part)
    return tuple(kept)
