"""One file a command; each imports what it needs, and only when it runs."""
