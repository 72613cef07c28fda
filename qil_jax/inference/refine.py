"""What follows sampling: fewer layers, their names and order, exact recomposition, and recursion."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qil_jax.inference.request import Decomposer, JobOptions, Request, Settings
from qil_jax.inference.tree import POLICIES, split_layers
from qil_jax.layers.descriptions import apply_descriptions
from qil_jax.layers.exact import Exactness, exact
from qil_jax.layers.health import health
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.selection import select_layers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """A decomposition after all that was asked for.

    Attributes:
      tree: the layers, and those that they were decomposed into.
      report: JSON values: `decisions` (a sentence each), `health` of the layers that blend to the picture, and `exact`,
        what exact recomposition changed if it was asked for.
    """

    tree: LayerTree
    report: dict[str, Any]


def refine(
    stacks: Sequence[LayeredImage],
    pictures: Sequence[UInt8[np.ndarray, "y x 4"]],
    requests: Sequence[Request],
    options: JobOptions,
    decomposer: Decomposer,
    settings: Settings,
    *,
    batch: int = 1,
) -> list[Refined]:
    """Refine the decompositions of a batch as `options` say; without wishes they stay as they are.

    In this order: superfluous layers go (`auto`), descriptions name and order the others (`described`), colours are
    fitted to the picture (`exact`), layers are decomposed again (`depth`, `split`), and their colours are fitted.

    Args:
      stacks: layers of each decomposition.
      pictures: the picture that each stack decomposes, of the stack's size.
      requests: the request of each stack.
      options: what was asked for.
      decomposer: pipeline, for recursion.
      settings: sampler settings, for recursion.
      batch: number of decompositions per batch, for recursion.
    """
    if options.auto:
        stacks = [select_layers(stack, picture) for stack, picture in zip(stacks, pictures, strict=True)]
    if options.described:
        stacks = [
            apply_descriptions(stack, [said.resized(request.image.size, stack.size) for said in options.described])
            for stack, request in zip(stacks, requests, strict=True)
        ]
    fits: list[Exactness | None] = [None] * len(stacks)
    if options.exact:
        fitted = [exact(stack, picture) for stack, picture in zip(stacks, pictures, strict=True)]
        stacks, fits = [stack for stack, _ in fitted], [fit for _, fit in fitted]
    how = {"depth": options.depth, "policy": POLICIES[options.split], "batch": batch}
    trees = split_layers(stacks, requests, decomposer, settings, **how)
    return [_finished(tree, picture, fit) for tree, picture, fit in zip(trees, pictures, fits, strict=True)]


def _finished(tree: LayerTree, picture: np.ndarray, fit: Exactness | None) -> Refined:
    leaves = tree.leaves()
    if fit is not None and tree.groups:
        leaves, last = exact(leaves, picture)
        tree = tree.with_leaves(leaves.layers)
        fit = dataclasses.replace(last, psnr_before=fit.psnr_before)
    report: dict[str, Any] = {
        "decisions": _decisions(tree),
        "health": dataclasses.asdict(health(list(leaves.layers))),
        **({} if fit is None else {"exact": {name: round(x, 4) for name, x in dataclasses.asdict(fit).items()}}),
    }
    return Refined(tree=tree, report=report)


def _decisions(tree: LayerTree, of: str = "") -> list[str]:
    """The decisions of a stack and of its groups, which name the group."""
    found = [of + decision for decision in tree.layered.decisions]
    for i, group in tree.groups.items():
        found += _decisions(group.tree, f"{of}{tree.layered.names[i]}: ")
    return found
