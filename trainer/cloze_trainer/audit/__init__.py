"""Probes of a language model: whether it has kept secrets, and how it treats groups."""
