"""Base of every resource model: camelCase outside, closed to unknown fields, with rules that render to CEL.

A rule that relates several fields is written twice in one place: as the CEL expression that the API server
evaluates and as the Python predicate that `cloze-train FILE` evaluates outside a cluster. Both give the same message.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Rule:
    """One cross-field rule.

    cel: expression over `self`, true when the object is good.
    message: names the field and the remedy.
    check: the same predicate over the pydantic model; None for rules that only an API server can evaluate
        (transitions from `oldSelf`).
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None


def validations(rules: tuple[Rule, ...]) -> list[dict[str, str]]:
    """`x-kubernetes-validations` of the given rules."""
    return [{"rule": rule.cel, "message": rule.message} for rule in rules]


def undefaulted(schema: dict[str, Any]) -> None:
    """For a field's `json_schema_extra`: its default isn't written into objects: rules can tell whether it is set."""
    schema.pop("default", None)


def distinct(labels: list[str]) -> list[str]:
    """The labels, of which no two may be the same. Raises ValueError."""
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ValueError(f"{', '.join(repeated)}: named more than once, name each label once")
    return labels


class Schema(BaseModel):
    """A part of a resource. Field names are camelCase in YAML and snake_case in Python."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Carry the rules into the schema, so that a definition rendered from it has them at the right place."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = validations(cls.rules)
        return schema

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if rule.check is not None and not rule.check(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self


class Reported(Schema):
    """A part of a status. Unknown fields are dropped, as the API server prunes them too."""

    model_config = ConfigDict(extra="ignore")


#: A name that a Service can have too (RFC 1035 label), short enough for the children's suffixes.
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MAX = 40

ObjectName = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=NAME_MAX)]

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", min_length=1, max_length=63)]
"""A registered model's name: what MLflow, a label value and a URL path all accept."""

Alias = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]

_RESERVED_ALIAS = r"^(latest|v[0-9]+)$"


def alias_rule(path: str) -> Rule:
    """The rule on the alias at this path, for the model that has it as its own field."""
    name = path.rsplit(".", 1)[1]
    field = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return Rule(
        cel=f"!has(self.{name}) || !self.{name}.matches('{_RESERVED_ALIAS}')",
        message=f"{path} is a word that MLflow keeps for itself (latest, v1, v2 and so on): choose another one",
        check=lambda model: not re.match(_RESERVED_ALIAS, getattr(model, field) or ""),
    )


ModelVersion = Annotated[str, Field(pattern=r"^[1-9][0-9]*$", max_length=10)]

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
