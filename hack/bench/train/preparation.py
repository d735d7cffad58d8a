"""Our preparation: `preparation.py PLAN RESULT` tokenizes documents, packs them into rows and writes these."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from cloze_api.pretrain import Corpus
from cloze_trainer.data import packing, tokenizer
from cloze_trainer.data.documents import documents
from cloze_trainer.data.spool import Spool


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the spooled documents to the file of rows, which cleaning leaves and training reads."""
    file = Path(plan["documents"])
    corpus = Corpus.model_validate({"uri": file.as_uri(), "format": "jsonl"})
    model = tokenizer.read(Path(plan["tokenizer"]))
    scratch = Path(plan["scratch"])
    with Spool(scratch) as spool:
        for text in documents(corpus, [file]):
            spool.append(text)
        began = time.perf_counter()
        counts = packing.write_rows(scratch / "rows.npy", model, spool, plan["max_length"])
        seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak is not None
    return {"seconds": seconds, "rows": counts.rows, "tokens": counts.tokens, "peak_bytes": int(peak[1]) << 10}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
