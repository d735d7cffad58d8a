"""The inference server: one verified artifact, one queue, one process."""
