"""On which machines pods may run: what trainings and servers say in the same words, which are Kubernetes' own."""

from typing import Annotated, Literal

from pydantic import Field

from cloze_api.schema import Schema

NodeSelector = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)]
PriorityClassName = Annotated[str, Field(max_length=253)]


class Toleration(Schema):
    """A taint that the pods tolerate, in Kubernetes' own terms."""

    key: Annotated[str, Field(max_length=316)] = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


Tolerations = Annotated[list[Toleration], Field(max_length=16)]
