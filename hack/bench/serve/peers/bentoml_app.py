"""BentoML with its adaptive batching: bentoml serve bentoml_app:Service."""

import os

import bentoml
from common import Classifier

SIZE = int(os.environ.get("BENCH_BATCH", "100"))


@bentoml.service(workers=1, traffic={"timeout": 60})
class Service:
    """One text a request."""

    def __init__(self) -> None:
        self.classify = Classifier()

    @bentoml.api(batchable=SIZE > 1, max_batch_size=max(SIZE, 2), route="/predict")
    def predict(self, texts: list[str]) -> list[dict[str, object]]:
        return self.classify(texts)
