"""Fixtures of the parity tests."""

from buckets import small_bucket as small_bucket
