"""One module for each task: its request, its reply, what it needs of the logits and what it makes of them."""

from collections.abc import Mapping
from typing import Final

from cloze_api.task import Task
from cloze_server.tasks.classify import Classify
from cloze_server.tasks.echo import Echo
from cloze_server.tasks.fill_mask import FillMask
from cloze_server.tasks.handler import AnyHandler
from cloze_server.tasks.token_classify import TokenClassify

HANDLERS: Final[Mapping[Task, type[AnyHandler]]] = {
    handler.task: handler for handler in (FillMask, Classify, TokenClassify, Echo)
}
