"""The tables of docs/pods.md: `python tools/pods`."""
