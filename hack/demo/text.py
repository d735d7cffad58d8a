"""Reads the two collections: tagged sentences of the Brown corpus, and mails reduced to their text."""

import email
import email.policy
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Document:
    """One file of the Brown corpus: its genre's letter, its name, and tagged sentences."""

    genre: str
    name: str
    sentences: list[list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail's subject and text, without the other headers: they would give the label away."""

    name: str
    label: str
    text: str


_UNIVERSAL = (
    ("VERB", r"v|be|do|hv|md"),
    ("PRON", r"pp|pn|wp|ex"),
    ("DET", r"at|ab|ap|dt|wdt|pp\$|wp\$"),
    ("ADP", r"in"),
    ("NUM", r"cd|od"),
    ("CONJ", r"cc|cs"),
    ("PRT", r"rp|to|\*"),
    ("ADV", r"r|wrb|ql|wql|nr"),
    ("ADJ", r"j"),
    ("NOUN", r"n"),
)


def universal_tag(brown_tag: str) -> str:
    """Brown's tag as one of the twelve universal ones (Petrov, Das and McDonald, LREC 2012).

    Of a contraction's joined tags (`ppss+bem`) the first counts; title, headline, cited and foreign marks are dropped.
    """
    tag = brown_tag.lower().removeprefix("fw-").split("+")[0]
    tag = re.sub(r"-(tl|hl|nc)", "", tag)
    tag = tag.rstrip("*") or "*"
    if tag in ("pp$", "wp$"):
        return "DET"
    if not re.match(r"[a-z*]", tag):
        return "."
    if tag == "nil":
        return "X"
    return next((universal for universal, pattern in _UNIVERSAL if re.match(pattern, tag)), "X")


def read_brown(folder: Path) -> Iterator[Document]:
    """Every document in order of its name; a sentence is one line of `word/tag` pairs."""
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        sentences = []
        for line in path.read_text(encoding="latin-1").splitlines():
            pairs = [pair.rsplit("/", 1) for pair in line.split()]
            sentence = [(word, universal_tag(tag)) for word, tag in (pair for pair in pairs if len(pair) == 2) if word]
            if sentence:
                sentences.append(sentence)
        yield Document(genre=path.name[1], name=path.name, sentences=sentences)


def detokenize(words: list[str]) -> str:
    """Running text of a tokenized sentence: Brown's quotes and spaced punctuation as people write them."""
    text = " ".join(words).replace("``", '"').replace("''", '"')
    text = re.sub(r" ([,.;:?!)])", r"\1", text)
    text = re.sub(r"([;:?!]){2,}", r"\1", text)
    text = re.sub(r"\( ", "(", text)
    quote_open = True
    parts = []
    for part in re.split(r'( ?" ?)', text):
        if part.strip() == '"':
            parts.append(' "' if quote_open else '" ')
            quote_open = not quote_open
        else:
            parts.append(part)
    return re.sub(r" ([,.;:?!)])", r"\1", re.sub(r" +", " ", "".join(parts))).strip()


def _plain(message: email.message.Message) -> str:
    """The mail's text: its plain part, or its HTML part without tags."""
    texts: dict[str, str] = {}
    for part in message.walk():
        if part.get_content_maintype() != "text" or part.get_content_subtype() in texts:
            continue
        data = part.get_payload(decode=True)
        if isinstance(data, bytes):
            texts[part.get_content_subtype()] = data.decode("utf-8", errors="replace")
    text = texts.get("plain")
    if text is None:
        marked = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->", " ", texts.get("html", ""))
        text = html.unescape(re.sub(r"(?s)<[^>]*>", " ", marked))
    return re.sub(r"\s+", " ", text).strip()


def read_mails(folder: Path, max_characters: int = 2000) -> Iterator[Mail]:
    """Every mail in order of its group and name; longer texts are cut, empty ones left out."""
    for path in sorted((folder / "data").glob("*/*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))["text"]
        message = email.message_from_string(raw, policy=email.policy.compat32)
        subject = re.sub(r"\s+", " ", str(message.get("subject", ""))).strip()
        # The list's own mark in a subject names its archive, and so the label.
        subject = re.sub(r"\[[^\]]{1,30}\]\s*", "", subject)
        text = f"{subject}\n{_plain(message)}".strip()[:max_characters]
        if len(text) >= 20:
            yield Mail(
                f"{path.parent.name}/{path.stem}", "spam" if path.parent.name.startswith("spam") else "ham", text
            )
