"""Nouns: the plain data and protocols that every room shares; nothing here imports torch."""
