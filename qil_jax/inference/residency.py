"""Which components lie in device memory, and when."""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax


@runtime_checkable
class HasState(Protocol):
    """An object whose parameters are a pytree of arrays, or of shapes where it has none."""

    state: Any


Loaded = TypeVar("Loaded", bound=HasState)


class Resident(Generic[Loaded]):
    """A component that is loaded on first use, and again after it was freed."""

    def __init__(self, load: Callable[[], Loaded]):
        self._load = load
        self._loaded: Loaded | None = None

    def __call__(self) -> Loaded:
        """The component, with its parameters in device memory."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def is_loaded(self) -> bool:
        """Whether the component is in device memory."""
        return self._loaded is not None

    def forget(self) -> None:
        """Let others own what was loaded; the buffers stay as long as they do."""
        self._loaded = None

    def free(self) -> None:
        """Delete the parameters' buffers; objects that still refer to them can no longer be used."""
        loaded, self._loaded = self._loaded, None
        for leaf in jax.tree.leaves(loaded.state) if loaded is not None else ():
            if isinstance(leaf, jax.Array):
                leaf.delete()
