"""Whether a tokenizer is what special ids and a vocabulary's size speak of: asked wherever a model comes in.

A special id that means another token gives answers that are wrong without being errors, and an id beyond the vocabulary
breaks off whatever meets it.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from cloze_api.manifest import SpecialTokens


class Tokenizer(Protocol):
    """As much of `tokenizers.Tokenizer` as is asked."""

    @property
    def model(self) -> Any:
        """What knows the pieces."""

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens, added ones among them."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """Added tokens by id."""

    def encode(self, sequence: str, /) -> Any:
        """A text with what is put around it."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a tokenizer doesn't fit. reason: CamelCase. told: how a sentence goes on that begins with the tokenizer."""

    reason: str
    told: str


def misfit(tokenizer: Tokenizer, special: SpecialTokens, vocab_size: int | None) -> Misfit | None:
    """Why a tokenizer isn't that of a model with these special ids and so many tokens; None for one that is.

    vocab_size: None where there is no model yet. Reasons: VocabularyInvalid, SpecialTokensInvalid, and TokenizerInvalid
    where it frames a text otherwise.
    """
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    highest = max(vocabulary.values(), default=-1)
    if vocab_size is not None and highest >= vocab_size:
        told = f"gives ids up to {highest}, and the limit of the model's vocabulary is {vocab_size}"
        return Misfit("VocabularyInvalid", told)
    for role, number in special.model_dump(exclude_none=True).items():
        if number not in added or not added[number].special:
            return Misfit("SpecialTokensInvalid", f"has no special token with the {role} id {number}")
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and vocabulary.get(unknown) != special.unk:
        told = (
            f"has the unknown token {unknown!r} with the id {vocabulary.get(unknown)}, and the model's is {special.unk}"
        )
        return Misfit("SpecialTokensInvalid", told)
    framed = list(tokenizer.encode("").ids)
    if framed != [special.cls, special.sep]:
        # Truncation relies on it.
        told = (
            f"turns an empty text into {framed}, and the model expects [{special.cls}, {special.sep}], its cls and sep"
        )
        return Misfit("TokenizerInvalid", told)
    if special.alike:
        told = f"uses one token as {' and '.join(special.alike)}: what shares one id could not be told apart"
        return Misfit("SpecialTokensInvalid", told)
    return None
