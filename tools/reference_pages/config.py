"""The page of configuration: every key of every section, from the models that validate them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ds_core.config.registry import Registry
from ds_core.config.section import Section
from ds_core.config.training import TrainingSection
from reference_pages.markdown import attribute_docs, cell, code, first_line, table
from reference_pages.markdown import page as make_page

Schema = dict[str, Any]


def page() -> str:
    """The page."""
    registry = Registry.installed()
    blocks = [
        "Keys of the JSON configuration that the installed wheels serve. Unknown keys are errors at every level. Where "
        'a value may be left open, `null` or `"auto"` asks for it to be filled; `ds config explain FILE --world N` '
        "shows with what.",
        "## Top level",
        keys(TrainingSection),
    ]
    for key in sorted(registry.claims):
        claim = registry.claims[key]
        model = registry.model(key)
        blocks += [
            f"## {key}",
            f"{cell(claim.section.summary or first_line(model))}. Served by `{claim.owner}`.",
            keys(model),
        ]
        if claim.section.legacy_keys:
            old = ", ".join(code(name) for name in sorted(claim.section.legacy_keys))
            blocks.append(f"Older spellings that are still read: {old}.")
        refused = [[code(name), cell(reason)] for name, reason in refusals(model)]
        blocks.append(table(["known, but not served", "why"], refused))
    return make_page("Configuration", *blocks)


def refusals(model: type[Section]) -> Iterator[tuple[str, str]]:
    """Keys a section knows and refuses, with the reason."""
    for name, reason in sorted(model.refused_keys.items()):
        yield name, reason if isinstance(reason, str) else reason.reason


def keys(model: type[Section]) -> str:
    """The table of one section's keys, nested sections included with dotted names."""
    schema = model.model_json_schema()
    rows = list(rows_of(model, schema, schema.get("$defs", {}), ""))
    return table(["key", "value", "default", "meaning"], rows)


def rows_of(model: type[Section], schema: Schema, defs: Schema, prefix: str) -> Iterator[list[str]]:
    """Rows for the fields of a model."""
    docs = attribute_docs(model)
    for name, spec in schema.get("properties", {}).items():
        doc = docs.get(name) or spec.get("description", "")
        yield [code(prefix + name), cell(describe(spec, defs)), default_of(spec), cell(doc)]
        inner = nested(model, name)
        if inner is not None:
            own = inner.model_json_schema()
            yield from rows_of(inner, own, {**defs, **own.get("$defs", {})}, f"{prefix}{name}.")


def nested(model: type[Section], name: str) -> type[Section] | None:
    """The section a field holds, if it holds one."""
    annotation = model.model_fields[name].annotation
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    return found[0] if len(found) == 1 else None


def default_of(spec: Schema) -> str:
    """The default as JSON."""
    if "default" not in spec:
        return "required"
    return "left open" if spec["default"] is None else code(json.dumps(spec["default"]))


def describe(spec: Schema, defs: Schema) -> str:
    """The allowed values in words."""
    if "$ref" in spec:
        return describe(defs.get(spec["$ref"].rpartition("/")[2], {}), defs)
    if "enum" in spec:
        return "one of " + ", ".join(code(json.dumps(item)) for item in spec["enum"])
    if "const" in spec:
        return code(json.dumps(spec["const"]))
    choices = spec.get("anyOf") or spec.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(describe(item, defs) for item in choices if item.get("type") != "null"))
    if len(spec.get("allOf", [])) == 1:
        return describe(spec["allOf"][0], defs)
    kind = spec.get("type", "any value")
    limits = [
        f"{sign} {spec[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in spec
    ]
    if kind == "array":
        return f"list of {describe(spec.get('items', {}), defs)}"
    return " ".join([str(kind), *limits])
