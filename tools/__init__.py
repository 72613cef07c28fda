"""The repository's programs, `python tools/NAME.py` each, or `python tools/NAME` where NAME is a folder."""
