"""What a program of the released model needs on accelerators that are not there (docs/pods.md)."""
