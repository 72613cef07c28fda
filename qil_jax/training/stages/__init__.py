"""The stages of training: which there are, and what each does with batches and parameters."""
