"""Limits of single models, in place of those that all have. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cloze_server.exits import ExitCode, FatalError
from cloze_server.flags import FLAGS
from cloze_server.model import LoadedModel, identity

FIELDS: Final = ("max_inputs", "max_characters", "max_queue_tokens", "max_batch_tokens", "max_wait_seconds")
"""Of the settings, those that a model may have of its own."""

_FLAGS = {flag.option.removeprefix("--"): flag for flag in FLAGS if flag.field in FIELDS}


def declared(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By the name of each model, its own settings, from texts as `small:max-inputs=8`. Raises ValueError."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        limit, _, number = rest.partition("=")
        flag = _FLAGS.get(limit)
        if not name or flag is None:
            raise ValueError(f"{text!r}: give NAME:LIMIT=NUMBER, where LIMIT is one of {', '.join(_FLAGS)}")
        try:
            value = flag.value(number)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from error
        if flag.field in found.setdefault(name, {}):
            raise ValueError(f"{text!r}: {name} has {limit} already")
        found[name][flag.field] = value
    return found


def of(limits: Mapping[str, Mapping[str, Any]], model: LoadedModel) -> dict[str, Any]:
    """A model's own; those of `name/version` before those of `name`."""
    return {**limits.get(model.name, {}), **limits.get(identity(model), {})}


def check(names: Iterable[str], models: Sequence[LoadedModel]) -> None:
    """Whether there are models that are called so. Raises FatalError (CONFIGURATION)."""
    known = {name for model in models for name in (model.name, identity(model))}
    for name in names:
        if name not in known:
            message = f"--limit: {name!r} is none of the models {', '.join(map(identity, models))}: name one of them"
            raise FatalError(ExitCode.CONFIGURATION, "LimitInvalid", message)
