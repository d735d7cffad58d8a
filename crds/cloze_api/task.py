"""The tasks that a Cloze artifact can perform."""

from enum import StrEnum


class Task(StrEnum):
    """What a model answers. The value is the name used in resources, manifests, tags and metric labels."""

    FILL_MASK = "fill-mask"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a task's name, not a secret
    QUESTION_ANSWERING = "question-answering"
    """The part of a context that answers a question (extractive)."""
    EMBEDDING = "embedding"
    """A vector for a text."""
    ECHO = "echo"
    """No language model: answers with a hash of each text, and fails or is slow when it was made to. It exists to prove
    routes, rollouts and drains; nothing trains it, and its artifact has neither tokenizer nor graph."""


class Problem(StrEnum):
    """What sequence classification answers of a text."""

    SINGLE_LABEL = "single-label"
    """One of the labels."""
    MULTI_LABEL = "multi-label"
    """Each label by itself: several of them, or none."""
    REGRESSION = "regression"
    """A number."""


#: Tasks that a FineTuneJob can train.
FINE_TUNING_TASKS = (
    Task.SEQUENCE_CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION,
    Task.QUESTION_ANSWERING,
    Task.EMBEDDING,
)

#: Tasks whose answers are labels.
LABEL_TASKS = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
