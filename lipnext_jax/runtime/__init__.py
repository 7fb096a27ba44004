"""Running well: signals, explained errors, health, and the small programs."""
