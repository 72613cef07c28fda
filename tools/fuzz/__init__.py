"""Campaigns of broken input: `python tools/fuzz NAME`."""
