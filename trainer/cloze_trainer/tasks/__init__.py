"""The tasks that an encoder is fine-tuned for, a module each."""

from typing import Final

from cloze_api.task import Task
from cloze_trainer.tasks.classification import Texts, Words
from cloze_trainer.tasks.embedding import Embeddings
from cloze_trainer.tasks.kind import AnyKind
from cloze_trainer.tasks.question_answering import QuestionAnswering

KINDS: Final[dict[Task, AnyKind]] = {kind.task: kind for kind in (Texts(), Words(), QuestionAnswering(), Embeddings())}
