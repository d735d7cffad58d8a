"""Bounds of requests that the schema states; what a flag can lower, it can't raise above them."""

WORDS_MAX = 8192
"""Words of one input that the request has split itself."""

ERRORS_MAX = 16
"""Errors of a request that its problem document lists."""

PREDICTIONS_MAX = 50_000
"""Predicted tokens in one reply of a fill-mask model: masks of all inputs × `top_k`."""
