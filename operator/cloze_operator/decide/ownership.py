"""Names that somebody else holds: a foreign object is never edited."""

from collections.abc import Iterable, Mapping

from cloze_operator.decide.fields import Object, is_going, is_owned_by

Children = Mapping[str, Object] | Mapping[tuple[str, str], Object]
"""Live objects by kind, or by kind and name."""


def foreign(children: Children, owner: Object) -> str | None:
    """A sentence about objects that have our children's names and another owner; None when there are none."""
    found = [child for child in _others(children, owner) if not _is_passing(child, owner)]
    if not found:
        return None
    verb = "isn't this resource's" if len(found) == 1 else "aren't this resource's"
    return f"{_names(found)} already in the namespace and {verb}: delete it, or choose another name"


def left_over(children: Children, owner: Object) -> str | None:
    """A sentence about objects that are on their way out of the namespace; None when there are none."""
    found = [child for child in _others(children, owner) if _is_passing(child, owner)]
    return f"{_names(found)} of an earlier resource of this name still to be deleted" if found else None


def _others(children: Children, owner: Object) -> list[Object]:
    return [child for _, child in sorted(children.items()) if not is_owned_by(child, owner["metadata"]["uid"])]


def _is_passing(child: Object, owner: Object) -> bool:
    """Whether the object is going, or belonged to an earlier resource of this name: the garbage collector takes it."""
    same = (owner["kind"], owner["metadata"]["name"])
    references = child["metadata"].get("ownerReferences") or ()
    return is_going(child) or any((entry.get("kind"), entry.get("name")) == same for entry in references)


def _names(children: Iterable[Object]) -> str:
    return " and ".join(f"{child['kind']} {child['metadata']['name']}" for child in children)
