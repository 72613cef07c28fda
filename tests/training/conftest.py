"""Fixtures of tests that train."""

from runs import quick as quick
from runs import world as world
