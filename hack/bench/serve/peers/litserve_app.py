"""LitServe with its dynamic batching: python litserve_app.py PORT."""

import os
import sys

import litserve
from common import Classifier


class API(litserve.LitAPI):
    """One text a request."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - as in LitAPI
        self.classify = Classifier()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str] | str) -> list[dict[str, object]] | dict[str, object]:
        # With batches of one it hands over the text itself.
        return self.classify([texts])[0] if isinstance(texts, str) else self.classify(texts)

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        return output

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


if __name__ == "__main__":
    size = int(os.environ.get("BENCH_BATCH", "32"))
    server = litserve.LitServer(
        API(max_batch_size=size, batch_timeout=0.0 if size == 1 else 0.005),
        accelerator="cpu",
        workers_per_device=int(os.environ.get("BENCH_WORKERS", "1")),
    )
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
