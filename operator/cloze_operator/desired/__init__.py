"""Manifests of the children: pure functions from a resource to dict literals."""
