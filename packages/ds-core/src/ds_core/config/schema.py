"""The JSON Schema of a config file, for editors: what ds-core and installed wheels serve, and the catalog's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ds_core.config.catalog import ENTRIES, Tree
from ds_core.config.shape import shape_of

if TYPE_CHECKING:
    from ds_core.config.registry import Claim, Registry
    from ds_core.config.section import Section
    from ds_core.hooks import ConfigSection

__all__ = ["json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OPEN = ({"const": "auto"}, {"type": "null"})


def json_schema(sections: Iterable[Claim | ConfigSection] | None = None) -> dict[str, Any]:
    """The JSON Schema of the config this installation reads.

    Every value may also be ``"auto"`` or null. Old spellings are there, marked deprecated. Sections that no installed
    wheel serves are there by name, because they pass as long as they ask for nothing.
    """
    from ds_core.config.registry import SCHEMA_KEY, Registry
    from ds_core.config.training import TrainingSection

    registry = Registry.installed() if sections is None else Registry.of(sections)
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {SCHEMA_KEY: {"type": "string"}}
    properties.update(_model_schema(TrainingSection, definitions)["properties"])
    for key in registry.served():
        properties[key] = _section_property(registry, key, definitions)
    for old, new in registry.legacy.items():
        properties[old] = {"deprecated": True, "description": f"Old spelling of {new}."}
    for key, entry in ENTRIES.items():
        if key not in properties:
            reason = registry.outcome(key).reason
            properties[key] = {**_tree_schema(entry.keys), "description": f"Not served here: {reason}."}
    return {
        "$schema": _DIALECT,
        "title": "ds config",
        "type": "object",
        "properties": dict(sorted(properties.items())),
        "additionalProperties": False,
        "$defs": definitions,
    }


def _section_property(registry: Registry, key: str, definitions: dict[str, Any]) -> dict[str, Any]:
    model = registry.model(key)
    schema = _reference(model, definitions)
    old_values = [{"const": old, "deprecated": True} for old, _ in model.legacy_values]
    claim = registry.claims[key]
    summary = claim.section.summary or _first_line(model)
    return {"anyOf": [schema, *_OPEN, *old_values], "description": f"{summary} ({claim.owner})."}


def _reference(model: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to `model` among `definitions`, which gets it first when it is not there."""
    name = f"{model.__module__}.{model.__qualname__}"
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _model_schema(model, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _model_schema(model: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one section; its nested sections go to `definitions`."""
    generated = model.model_json_schema(ref_template="#/$defs/{model}")
    docs = field_docs(model)
    properties: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        shape, inner = shape_of(field.annotation)
        written = generated["properties"][name]
        if shape == "section" and inner is not None:
            value: dict[str, Any] = _reference(inner, definitions)
        elif shape == "named" and inner is not None:
            value = {"type": "object", "additionalProperties": _reference(inner, definitions)}
        else:
            value = _inlined(
                {part: item for part, item in written.items() if part not in ("default", "title", "description")},
                generated.get("$defs", {}),
            )
        properties[name] = {"anyOf": [*_alternatives(value), *_OPEN]}
        if "default" in written:
            properties[name]["default"] = written["default"]
        description = field.description or docs.get(name)
        if description:
            properties[name]["description"] = description
    for alias, target in model.aliases.items():
        properties[alias] = {"description": f"The same as {target}."}
    for old, moved in model.legacy_keys.items():
        target = moved if isinstance(moved, str) else moved.to
        properties[old] = {"deprecated": True, "description": f"Old spelling of {target}."}
    for name, refused in model.refused_keys.items():
        reason = refused if isinstance(refused, str) else refused.reason
        properties[name] = {"deprecated": True, "description": f"Not served: {reason}."}
    return {
        "type": "object",
        "description": _first_line(model),
        "properties": properties,
        "required": [name for name, field in model.model_fields.items() if field.is_required()],
        "additionalProperties": False,
    }


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of a union without null, or the schema itself."""
    if set(schema) != {"anyOf"}:
        return [schema]
    return [member for member in schema["anyOf"] if member != {"type": "null"}]


def _inlined(value: Any, definitions: Mapping[str, Any]) -> Any:
    """`value` with pydantic's references replaced by what they refer to."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str):
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        return {name: _inlined(item, definitions) for name, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    return value


def _tree_schema(tree: Tree) -> dict[str, Any]:
    if not tree:
        return {}
    properties = {name: _tree_schema(inner or {}) for name, inner in tree.items() if name != "*"}
    others = _tree_schema(tree["*"] or {}) if "*" in tree else False
    return {
        "anyOf": [
            {"type": "object", "properties": properties, "additionalProperties": others},
            {"not": {"type": "object"}},
        ]
    }


def field_docs(model: type[Section]) -> dict[str, str]:
    """The string under each field of `model` and of the sections it inherits from; empty where there is no source."""
    import ast  # these three cost more than the rest of the package together
    import inspect
    import textwrap

    from ds_core.config.section import Section

    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, Section) or base is Section:
            continue
        try:
            parsed = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        body = parsed.body if isinstance(parsed, ast.ClassDef) else []
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def _first_line(model: type[Section]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]
