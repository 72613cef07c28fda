"""Fixtures of tests that train."""

from buckets import small_bucket as small_bucket
from runs import one_device as one_device
from runs import quick as quick
from runs import world as world
