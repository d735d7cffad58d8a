"""One module for each task: its request, its reply, what it needs of the logits and what it makes of them."""

from collections.abc import Mapping
from typing import Final

from cloze_server import paths
from cloze_server.tasks.answer import AnswerQuestion
from cloze_server.tasks.classify import Classify
from cloze_server.tasks.echo import Echo
from cloze_server.tasks.embed import Embed, Similarity
from cloze_server.tasks.fill_mask import FillMask
from cloze_server.tasks.handler import AnyHandler
from cloze_server.tasks.token_classify import TokenClassify

_MAIN = (FillMask, Classify, TokenClassify, AnswerQuestion, Embed, Echo)

#: By path; that of `paths.TASK_PATHS` comes first among those of a task.
HANDLERS: Final[Mapping[str, type[AnyHandler]]] = {
    **{paths.TASK_PATHS[handler.task]: handler for handler in _MAIN},
    paths.SIMILARITY: Similarity,
}
