"""Batch scoring: `cloze-server batch` answers for each row of a file, with the engine that serves over HTTP."""
