"""The trainer: one job, from its data to a registered artifact."""

import os

# ONNX Runtime would note its use for its maker, from a thread of its own and in a database in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
