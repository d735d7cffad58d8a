"""Which language a document is in, by the frequencies of its byte sequences (langid, Lui and Baldwin 2012)."""

from collections.abc import Sequence

from cloze_trainer.errors import InputError

UNSURE = "und"
"""ISO 639's code for a language that can't be told."""
# Characters that are looked at, half of them from the beginning and half from the middle: it needs no more.
_SAMPLE = 512


class Languages:
    """Tells languages by the model that comes with py3langid; nothing is fetched."""

    def __init__(self, wanted: Sequence[str], min_probability: float) -> None:
        """Raises InputError for a language that the model doesn't know."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - a fifth of a second, for few

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = sorted(self._identifier.labels)
        if unknown := [language for language in wanted if language not in known]:
            raise InputError(
                "LanguageUnknown",
                f"spec.cleaning.languages names {unknown[0]}, which can't be told from others: use {', '.join(known)}",
            )
        self._wanted, self._min_probability = frozenset(wanted), min_probability

    def of(self, text: str) -> str:
        """The most probable language, as ISO 639 names it; `und` where it isn't probable enough."""
        if len(text) > _SAMPLE:
            half, middle = _SAMPLE // 2, len(text) // 2
            text = f"{text[:half]} {text[middle : middle + half]}"
        language, probability = self._identifier.classify(text)
        return str(language) if probability >= self._min_probability else UNSURE

    def wants(self, language: str) -> bool:
        """Whether documents in it are kept."""
        return language in self._wanted
