"""The Open Inference Protocol, version 2, over HTTP: the same models for clients of KServe and Triton.

Facts of the protocol are from https://github.com/kserve/open-inference-protocol (inference_rest.md) and, for tensors in
binary, from Triton's extension_binary_data.md.
"""
