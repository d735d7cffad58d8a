"""What is the case now: one frozen snapshot of a resource, its children, the registry's and the pods' answers."""
