"""The tasks that an encoder is fine-tuned for, a module each."""

from typing import Final

from cloze_api.task import Problem, Task
from cloze_trainer.tasks.classification import Texts, Words
from cloze_trainer.tasks.embedding import Embeddings
from cloze_trainer.tasks.kind import AnyKind
from cloze_trainer.tasks.question_answering import QuestionAnswering
from cloze_trainer.tasks.regression import Regression
from cloze_trainer.tasks.several_labels import SeveralLabels

_KINDS: Final[tuple[AnyKind, ...]] = (
    Texts(),
    SeveralLabels(),
    Regression(),
    Words(),
    QuestionAnswering(),
    Embeddings(),
)
_BY_NAME: Final = {(kind.task, kind.problem): kind for kind in _KINDS}


def find(task: Task, problem: Problem = Problem.SINGLE_LABEL) -> AnyKind | None:
    """What there is for a task; None for one that nothing is fine-tuned for."""
    return _BY_NAME.get((task, problem))


def of(task: Task, problem: Problem = Problem.SINGLE_LABEL) -> AnyKind:
    """The same, of one that there is."""
    return _BY_NAME[task, problem]
