"""How good a classifier is, how sure that is, and whether it is good enough."""
