"""The tasks that a Cloze artifact can perform."""

from enum import StrEnum


class Task(StrEnum):
    """What a model answers. The value is the name used in resources, manifests, tags and metric labels."""

    FILL_MASK = "fill-mask"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task's name, not a secret


#: Tasks that a FineTuneJob can train.
FINE_TUNING_TASKS = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
