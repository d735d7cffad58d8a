"""Training that tells little about any one example (Abadi et al., arXiv:1607.00133)."""
