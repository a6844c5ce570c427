"""The documents' JSON Schemas and the error codes, for clients in other languages.

``python -m bus.producers.schemas`` prints them. The TypeScript package keeps that as
schemas/documents.json and makes its types and its checks from it; a test fails when it is not what
this says.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from bus.errors import Code
from bus.model import CommitMarker, JobManifest, JobState, Receipt, RejectReason

#: What producers write: a field with a default may be left out.
_WRITTEN = (JobManifest, CommitMarker)
#: What the bus answers: a field is there, unless it can be None.
_ANSWERED = (Receipt, RejectReason)
_OWN = {"properties", "required"}


def documents() -> dict[str, Any]:
    """``{documents: {name: JSON Schema}, states: [...], codes: {code: {label, hint}}}``."""
    written = {m.__name__: _tidy(m.model_json_schema(), whole=False) for m in _WRITTEN}
    answered = {m.__name__: _tidy(m.model_json_schema(), whole=True) for m in _ANSWERED}
    return {
        "documents": written | answered,
        "states": [str(state) for state in JobState],
        "codes": {str(code): {"label": code.label, "hint": code.hint} for code in Code},
    }


def text() -> str:
    """`documents` as a file holds it."""
    return json.dumps(documents(), indent=1, ensure_ascii=False) + "\n"


def _tidy(schema: Any, *, whole: bool) -> Any:
    """The schema of what is on disk: None is written by leaving the field out.

    `whole`: whoever writes the document writes the defaults too.
    """
    if isinstance(schema, list):
        return [_tidy(item, whole=whole) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fields = schema.get("properties", {})
    found = {key: _tidy(value, whole=whole) for key, value in schema.items() if key not in _OWN}
    if fields:
        required = fields if whole else schema.get("required", ())
        found["properties"] = {name: _field(field, whole=whole) for name, field in fields.items()}
        found["required"] = [name for name in required if not _may_be_null(fields[name])]
    return found


def _field(field: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """A property without the title that only repeats its name, and without null."""
    found: dict[str, Any] = {k: _tidy(v, whole=whole) for k, v in field.items() if k != "title"}
    if not _may_be_null(field):
        return found
    del found["default"]
    kinds = [kind for kind in found.pop("anyOf") if kind != {"type": "null"}]
    return found | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _may_be_null(field: dict[str, Any]) -> bool:
    return {"type": "null"} in field.get("anyOf", ())


if __name__ == "__main__":
    sys.stdout.write(text())
