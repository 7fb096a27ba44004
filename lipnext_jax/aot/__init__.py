"""Programs compiled for machines that are not here: do they fit, how fast."""
