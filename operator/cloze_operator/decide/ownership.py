"""Names that somebody else holds: a foreign object is never edited."""

from collections.abc import Mapping

from cloze_operator.decide.fields import Object, is_owned_by


def foreign(children: Mapping[str, Object], uid: str) -> str | None:
    """A sentence about objects that have our children's names and another owner; None when there are none."""
    names = [
        f"{kind} {child['metadata']['name']}" for kind, child in sorted(children.items()) if not is_owned_by(child, uid)
    ]
    if not names:
        return None
    verb = "isn't this resource's" if len(names) == 1 else "aren't this resource's"
    return f"{' and '.join(names)} already in the namespace and {verb}: delete it, or choose another name"
