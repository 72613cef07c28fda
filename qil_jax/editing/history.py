"""A history of operations that can be undone and redone."""

from qil_jax.editing.operation import Operation
from qil_jax.editing.script import Operations, require_possible, states
from qil_jax.editing.stack import EditError, Stack


class History:
    """A stack and the operations on it so far. Undoing gives back the very state before; states are never changed.

    Memory: of each operation the layer that it changed, until its undoing is followed by another operation.
    """

    def __init__(self, stack: Stack):
        """Begin with `stack`, without operations."""
        self._states = [stack]
        self._operations: list[Operation] = []
        self._done = 0

    @property
    def stack(self) -> Stack:
        """The present state."""
        return self._states[self._done]

    @property
    def operations(self) -> Operations:
        """The operations that lead to the present state: a script."""
        return tuple(self._operations[: self._done])

    def do(self, operation: Operation) -> Stack:
        """Carry out an operation; what was undone before cannot be redone any more.

        Raises:
          ScriptError: if it cannot be carried out; the history stays as it was.
        """
        require_possible(self.stack, [operation])
        (after,) = states(self.stack, [operation])
        self._states[self._done + 1 :] = [after]
        self._operations[self._done :] = [operation]
        self._done += 1
        return after

    def undo(self) -> Stack:
        """Take back the last operation.

        Raises:
          EditError: if there is none.
        """
        if not self._done:
            raise EditError("there is nothing to undo")
        self._done -= 1
        return self.stack

    def redo(self) -> Stack:
        """Carry out again what was undone last.

        Raises:
          EditError: if there is nothing.
        """
        if self._done == len(self._operations):
            raise EditError("there is nothing to redo")
        self._done += 1
        return self.stack
