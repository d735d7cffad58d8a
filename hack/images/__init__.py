"""Builds the container images and hands them to a registry."""
