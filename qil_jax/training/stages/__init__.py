"""The stages of training, and the operations of each on batches and parameters."""
