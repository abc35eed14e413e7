"""Verbs: the slipway command, one file a verb."""
