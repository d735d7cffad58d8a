"""What counts say about a canary: statistics as pure functions, with no client and no clock."""
