"""The contract between Cloze's rooms: resources, artifact manifest, tasks, metric and label names.

Everything that the operator, the trainer and the server must agree on is declared here once. The package needs
pydantic alone, so that each image can carry it.
"""

from cloze_api.names import API_VERSION, GROUP, VERSION

__all__ = ["API_VERSION", "GROUP", "VERSION"]
