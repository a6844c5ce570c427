"""What pydantic says of a manifest, in the bus's words: every problem with its place and a hint."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from bus.errors import MAX_PROBLEMS, Code, Problem, problem
from bus.model import ArtifactEntry, Document, JobManifest, Mutation, Provenance

if TYPE_CHECKING:
    from pydantic import ValidationError

_PYDANTIC_CODES = {"nothing_to_do": Code.E111, "too_long": Code.E107}
_ID_FIELDS = {"job_id", "run_id", "producer", "kind", "artifact_id", "alias", "pin", "after"}
_MUTATIONS: tuple[type[Document], ...] = get_args(get_args(Mutation)[0])
_MUTATION_OPS = {get_args(model.model_fields["op"].annotation)[0] for model in _MUTATIONS}
_WRITTEN: tuple[type[Document], ...] = (JobManifest, ArtifactEntry, Provenance, *_MUTATIONS)
_KNOWN_FIELDS = sorted({name for model in _WRITTEN for name in model.model_fields})


def manifest_problems(error: ValidationError, where: str = "manifest.json") -> list[Problem]:
    """The findings of pydantic as `Problem`s, `MAX_PROBLEMS` and one more at most.

    An unknown field names its nearest neighbour.
    """
    found = error.errors(include_url=False, include_context=False)[: MAX_PROBLEMS + 1]
    return [_as_problem(item, where) for item in found]


def _as_problem(item: Any, where: str) -> Problem:
    path = list(item["loc"])
    if path[:1] == ["mutations"] and path[2:3] and path[2] in _MUTATION_OPS:
        del path[2]  # the op that pydantic took it for; a field may have the same name
    place = where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    field = next((p for p in reversed(path) if isinstance(p, str)), "")
    kind = item["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(field, _KNOWN_FIELDS, n=1, cutoff=0.5)
        known = f"did you mean {near[0]!r}? " if near else ""
        hint = f"{known}Data of your own belongs in `meta`."
        return problem(Code.E103, place, f"unknown field {field!r}", hint)
    if kind == "string_pattern_mismatch" and field in _ID_FIELDS:
        return problem(Code.E104, place, f"{str(item['input'])[:160]!r} is not an identifier")
    code = _PYDANTIC_CODES.get(kind, Code.E103)
    return problem(code, place, item["msg"])
