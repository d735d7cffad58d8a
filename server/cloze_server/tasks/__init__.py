"""One module for each task: its request, its reply, which logits it needs and what it makes of them."""

from cloze_api.task import Task
from cloze_server.model import LoadedModel
from cloze_server.tasks.classify import Classify
from cloze_server.tasks.fill_mask import FillMask
from cloze_server.tasks.handler import AnyHandler
from cloze_server.tasks.token_classify import TokenClassify


def handler_for(model: LoadedModel) -> AnyHandler:
    """What answers for this model."""
    match model.task:
        case Task.FILL_MASK:
            return FillMask(model)
        case Task.SEQUENCE_CLASSIFICATION:
            return Classify(model)
        case Task.TOKEN_CLASSIFICATION:
            return TokenClassify(model)


ROUTES = {
    Task.FILL_MASK: "/v1/fill-mask",
    Task.SEQUENCE_CLASSIFICATION: "/v1/classify",
    Task.TOKEN_CLASSIFICATION: "/v1/token-classify",
}
