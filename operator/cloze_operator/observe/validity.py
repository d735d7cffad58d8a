"""Why a resource can't be parsed. The API server's schema lets none of these through unless the two differ in age."""

from pydantic import ValidationError


def explain(error: ValidationError) -> str:
    """One sentence for each mistake: the field's path and what is wrong with it."""
    return "; ".join(
        f"{'.'.join(str(part) for part in mistake['loc']) or 'resource'}: {mistake['msg']}"
        for mistake in error.errors(include_url=False, include_input=False)
    )
