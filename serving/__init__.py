"""Use of shipped graphs without torch."""
