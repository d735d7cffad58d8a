"""A complete single-node Kubernetes on this machine, without a container engine. See README.md."""
