"""How likely a piece of a text is to a masked language model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from cloze_api.manifest import SpecialTokens
from cloze_trainer.errors import InputError
from cloze_trainer.model import TaskModel
from cloze_trainer.workload import CHUNK_TOKENS

Ids = npt.NDArray[np.int64]
# The vocabulary makes each of them large.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A framed text, and where the piece of it is. ids_T: tokens. places: of the piece's tokens."""

    ids_T: Ids
    places: tuple[int, ...]

    def known(self, special: SpecialTokens) -> bool:
        """Whether the vocabulary has all of the piece."""
        return special.unk is None or special.unk not in self.ids_T[list(self.places)]


def locate(template: str, filled: str, model: Tokenizer, special: SpecialTokens, max_length: int) -> Piece:
    """Tokens of a template with something in it, and which of them are of that.

    Raises InputError when the model can't read so many, or nothing of the piece.
    """
    start = template.index("{}")
    text = template.replace("{}", filled)
    encoding = model.encode(text, add_special_tokens=False)
    places = tuple(
        number + 1
        for number, (begin, end) in enumerate(encoding.offsets)
        if begin < start + len(filled) and end > start and begin < end
    )
    ids_T = np.array([special.cls, *encoding.ids, special.sep], dtype=np.int64)
    if not places or len(ids_T) > max_length:
        why = (
            f"has more than {max_length} tokens" if places else "has nothing in the place of {} that the model can read"
        )
        raise InputError("ProbeUnsuitable", f"a template of spec.evaluation.audit {why}: change it")
    return Piece(ids_T, places)


def log_likelihoods(model: TaskModel, pieces: Sequence[Piece], special: SpecialTokens) -> list[float]:
    """Log-probability (nats) of each piece: of its tokens, each hidden alone (Salazar et al., arXiv:1910.14659)."""
    model.eval()
    device = next(model.parameters()).device
    assert special.mask is not None, "it is a model that fills masks"
    found = [0.0] * len(pieces)
    rows = max(1, min(_ROWS, CHUNK_TOKENS // max((len(piece.ids_T) for piece in pieces), default=1)))
    with torch.inference_mode():
        for part in _batches([(number, place) for number, piece in enumerate(pieces) for place in piece.places], rows):
            length = max(len(pieces[number].ids_T) for number, _ in part)
            ids_BT = np.full((len(part), length), special.pad, dtype=np.int64)
            for row, (number, place) in enumerate(part):
                ids_BT[row, : len(pieces[number].ids_T)] = pieces[number].ids_T
                ids_BT[row, place] = special.mask
            positions_M = torch.tensor([row * length + place for row, (_, place) in enumerate(part)], device=device)
            given = torch.from_numpy(ids_BT).to(device)
            logits_MV = model(given, given != special.pad, None, positions_M).float()
            truth_M = torch.tensor([int(pieces[number].ids_T[place]) for number, place in part], device=device)
            logs_M = logits_MV.log_softmax(-1).gather(-1, truth_M[:, None])[:, 0]
            for (number, _), value in zip(part, logs_M.tolist(), strict=True):
                found[number] += value
    return found


def said(
    model: TaskModel, hidden: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], special: SpecialTokens
) -> list[int]:
    """How many tokens the model fills in exactly as they were, its first choice, in each of several texts.

    hidden: of each its framed ids, the places that are hidden together, and those of them that count.
    """
    model.eval()
    device = next(model.parameters()).device
    assert special.mask is not None, "it is a model that fills masks"
    right: list[int] = []
    with torch.inference_mode():
        for begin in range(0, len(hidden), _ROWS):
            part = hidden[begin : begin + _ROWS]
            length = max(len(ids) for ids, _, _ in part)
            ids_BT = np.full((len(part), length), special.pad, dtype=np.int64)
            for row, (ids, places, _) in enumerate(part):
                ids_BT[row, : len(ids)] = ids
                ids_BT[row, list(places)] = special.mask
            positions_M = [row * length + place for row, (_, _, asked) in enumerate(part) for place in asked]
            given = torch.from_numpy(ids_BT).to(device)
            logits_MV = model(given, given != special.pad, None, torch.tensor(positions_M, device=device))
            answers = iter(logits_MV.argmax(-1).tolist())
            right += [sum(next(answers) == ids[place] for place in asked) for ids, _, asked in part]
    return right


def _batches(hidden: Sequence[tuple[int, int]], rows: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (hidden[at : at + rows] for at in range(0, len(hidden), rows))
