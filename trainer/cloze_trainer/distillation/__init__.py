"""A model that learns from a larger one."""
