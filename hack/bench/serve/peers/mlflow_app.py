"""A pyfunc model for `mlflow models serve`: python mlflow_app.py FOLDER writes it."""

import sys
from pathlib import Path
from typing import Any

import mlflow


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A list of texts a request."""

    def load_context(self, context: Any) -> None:  # noqa: ARG002 - as in PythonModel
        from common import Classifier  # noqa: PLC0415 - the model's own process has it on its path

        self.classify = Classifier()

    def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[dict[str, Any]]:  # noqa: ARG002
        return self.classify(list(model_input))


if __name__ == "__main__":
    shared = Path(__file__).with_name("common.py")
    mlflow.pyfunc.save_model(sys.argv[1], python_model=Model(), code_paths=[str(shared)])
