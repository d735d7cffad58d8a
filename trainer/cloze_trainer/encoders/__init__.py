"""Encoders in plain torch.

Networks of our own start seconds sooner than transformers' (a pod imports no model zoo), apply the vocabulary head to
the masked positions only, keep packed texts apart, and trace to small ONNX graphs. Tests hold each to the outputs of
transformers' class of its name.

Dimensions: B sequences, T tokens, D width, H heads, E width of a head, V vocabulary, C classes, M masked positions.
"""
