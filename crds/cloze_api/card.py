"""What only people know of a model: under which licences it is, what it is meant for, what it can't do."""

from typing import Annotated

from pydantic import Field

from cloze_api.schema import Schema

License = Annotated[str, Field(pattern=r"^\S(.{0,126}\S)?$", max_length=128)]
"""An SPDX identifier in small letters, as Hugging Face's hub has them (`apache-2.0`), or a name."""
_Text = Annotated[str, Field(min_length=1, max_length=2000)]


class Card(Schema):
    """For the model card and the manifest: what isn't stated is shown as such."""

    license: License | None = None
    """Of the model, such as `apache-2.0`."""
    data_license: License | None = None
    """Of what it is trained on."""
    base_license: License | None = None
    """Of the base; that which a registered base, or the card in a base's folder, states when absent."""
    teacher_license: Annotated[License | None, Field(exclude_if=lambda given: given is None)] = None
    """Of the teacher of a distillation; that which its card states when absent."""
    intended_use: _Text | None = None
    """What the model is for, in Markdown's plain text."""
    limitations: _Text | None = None
    """What it must not be used for, and where it is known to be wrong."""
