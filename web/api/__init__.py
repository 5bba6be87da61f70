"""The JSON API, /api/v1: what a tenant's own programs read, and delete, with an API key."""

import re
from typing import Any

import msgspec
from litestar import Router
from litestar.di import Provide

from tenants.exports import MEDIA_TYPES
from web.api import people, personal_data, records, reports
from web.api.access import SkipEmptyParameters, provide_app, provide_key, provide_store
from web.api.examples import EXAMPLES

api = Router(
    "/api/v1",
    route_handlers=[*records.handlers, *people.handlers, *reports.handlers, *personal_data.handlers],
    middleware=[SkipEmptyParameters],
    dependencies={
        "key": Provide(provide_key),
        "app": Provide(provide_app),
        "store": Provide(provide_store, sync_to_thread=False),
        "when": Provide(reports.provide_period, sync_to_thread=False),
        "during": Provide(reports.provide_span, sync_to_thread=False),
        "which": Provide(reports.provide_filters, sync_to_thread=False),
    },
    security=[{"api_key": []}],
    tags=["Reading back"],
)


_PROBLEM = {
    "type": "object",
    "description": "Why a request was refused.",
    "required": ["status_code", "detail"],
    "properties": {
        "status_code": {"type": "integer"},
        "detail": {"type": "string", "description": "A sentence for people."},
        "field": {"type": "string", "description": "The parameter at fault, with 400."},
    },
}
_PROBLEMS = {
    "400": "A parameter cannot be used.",
    "401": "No API key, or none that is valid.",
    "404": "There is no such app or person, or not for this key.",
    "429": "Too much is asked for at once; Retry-After says when to ask again.",
    "503": "A store does not answer; Retry-After says when to ask again.",
}
_MAY_NOT = {"403": "The API key only reads."}


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with what Litestar leaves out: docstrings of answers, nulls in examples, what is refused."""
    answers = [*records.ANSWERS, *people.ANSWERS, *reports.ANSWERS, *personal_data.ANSWERS]
    _, components = msgspec.json.schema_components(answers)
    for name, part in schema["components"]["schemas"].items():
        if description := components.get(name, {}).get("description"):
            # What Python calls None is null where it is read.
            part["description"] = re.sub(r"\bNone\b", "null", " ".join(description.split()))
        for field, kind in part["properties"].items():
            # Made as text, of milliseconds.
            for each in (kind, *kind.get("oneOf", [])):
                if field.endswith(("_at", "_seen")) and each.get("type") == "string":
                    each["format"] = "date-time"
    schema["components"]["schemas"]["Problem"] = _PROBLEM
    for operations in schema["paths"].values():
        for method, operation in operations.items():
            problems = _PROBLEMS | (_MAY_NOT if method == "delete" else {})
            for status, description in sorted(problems.items()):
                content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                operation["responses"][status] = {"description": description, "content": content}
            for parameter in operation.get("parameters", []):
                if "{" in parameter["name"]:
                    # Of names that nobody can list: sent so, an object's names are those in the query.
                    named = {"type": "object", "additionalProperties": {"type": "string"}}
                    parameter |= {"style": "form", "explode": True, "schema": named}
            if example := EXAMPLES.get(operation["operationId"]):
                done = next(answer for status, answer in operation["responses"].items() if status in ("200", "202"))
                next(iter(done["content"].values()))["example"] = example
    file = schema["paths"]["/api/v1/apps/{app_token}/export"]["get"]["responses"]["200"]
    file["content"][MEDIA_TYPES["parquet"]] = {"schema": {"type": "string", "format": "binary"}}
    return schema
