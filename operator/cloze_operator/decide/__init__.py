"""What should happen to one resource, given one snapshot of it: pure functions, no client, no clock of their own."""
