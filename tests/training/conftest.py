"""Fixtures of tests that train."""

from runs import world as world
