"""Which model answers in place of another that abstains. Pure."""

from collections.abc import Mapping, Sequence

from cloze_api.task import Task
from cloze_server.exits import ExitCode, FatalError
from cloze_server.model import LoadedModel, identity

_ABSTAINING = (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)


def declared(texts: Sequence[str]) -> dict[str, str]:
    """By the name of each model, that of its fallback, from texts as `small=large`. Raises ValueError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, other = text.partition("=")
        if not name or not other or name == other:
            raise ValueError(f"{text!r}: give NAME=OTHER, the names of two models")
        if name in found:
            raise ValueError(f"{text!r}: {name} has a fallback already")
        found[name] = other
    return found


def resolve(names: Mapping[str, str], models: Sequence[LoadedModel]) -> dict[str, str]:
    """The same by `name/version`. Raises FatalError (CONFIGURATION) for what can't be."""

    def named(name: str) -> LoadedModel:
        found = [each for each in models if name in (each.name, identity(each))]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(map(identity, models))
        raise _invalid(f"{name!r} is {'several' if found else 'none'} of the models {listed}: name one of them")

    resolved: dict[str, str] = {}
    for name, other in names.items():
        model, fallback = named(name), named(other)
        if model is fallback or identity(model) in resolved:
            raise _invalid(f"{name}={other}: a model has one fallback, which is another model")
        if model.task not in _ABSTAINING:
            raise _invalid(f"{name} does {model.task}: only classifiers of texts or tokens abstain")
        if not fits(model, fallback):
            raise _invalid(f"{other} answers {_described(fallback)}, {name} {_described(model)}: they must be the same")
        resolved[identity(model)] = identity(fallback)
    return resolved


def fits(model: LoadedModel, fallback: LoadedModel) -> bool:
    """Whether the one may answer for the other: in the same task, with the same labels in any order."""
    return (model.task, model.problem) == (fallback.task, fallback.problem) and set(model.labels) == set(
        fallback.labels
    )


def _described(model: LoadedModel) -> str:
    return f"{model.task} with {', '.join(sorted(model.labels)[:10])}{', …' if len(model.labels) > 10 else ''}"


def _invalid(message: str) -> FatalError:
    return FatalError(ExitCode.CONFIGURATION, "FallbackInvalid", f"--fallback: {message}")
