"""Where registered versions come from, and what has come of them."""
