"""What follows sampling: fewer layers, their names and order, their size, exact recomposition, and recursion."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qil_jax.inference.request import Decomposer, Decomposition, JobOptions, Settings
from qil_jax.inference.tree import POLICIES, split_layers
from qil_jax.layers.descriptions import apply_descriptions
from qil_jax.layers.exact import Exactness, exact
from qil_jax.layers.health import health
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.refinement import Refinement, at_size
from qil_jax.layers.selection import select_layers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A decomposition after all that was asked for.

    Attributes:
      tree: the layers, and those that they were decomposed into.
      picture: the picture that the layers decompose, of their size.
      report: JSON values: `decisions` (a sentence each), `health` of the layers that blend to the picture, and what
        `refinement` and `exact` recomposition did if they were asked for.
    """

    tree: LayerTree
    picture: UInt8[np.ndarray, "y x 4"]
    report: dict[str, Any]


def finish(
    made: Sequence[Decomposition],
    pictures: Sequence[UInt8[np.ndarray, "y x 4"]],
    options: JobOptions,
    decomposer: Decomposer,
    settings: Settings,
    *,
    batch: int = 1,
) -> list[Finished]:
    """Finish the decompositions of a batch as `options` say; without wishes they stay as they are.

    In this order: superfluous layers go (`auto`), descriptions name and order the others (`described`), layers get the
    picture's size (`edges`), colours are fitted to the picture (`exact`), layers are decomposed again
    (`depth`, `split`), and their colours are fitted.

    Args:
      made: the decompositions.
      pictures: the picture that each one decomposes, at the size that its layers get.
      options: what was asked for.
      decomposer: pipeline, for recursion.
      settings: sampler settings, for recursion.
      batch: number of decompositions per batch, for recursion.
    """
    stacks, requests = [one.layered for one in made], [one.request for one in made]
    if options.auto:
        stacks = [select_layers(one.layered, one.input) for one in made]
    if options.described:
        stacks = [
            apply_descriptions(stack, [said.resized(request.image.size, stack.size) for said in options.described])
            for stack, request in zip(stacks, requests, strict=True)
        ]
    sized = [at_size(stack, picture, options.edges) for stack, picture in zip(stacks, pictures, strict=True)]
    stacks, reports = [stack for stack, _ in sized], [report for _, report in sized]
    fits: Sequence[Exactness | None] = [None] * len(stacks)
    if options.exact:
        fitted = [exact(stack, picture) for stack, picture in zip(stacks, pictures, strict=True)]
        stacks, fits = [stack for stack, _ in fitted], [fit for _, fit in fitted]
    trees = split_layers(
        stacks,
        requests,
        decomposer,
        settings,
        depth=options.depth,
        policy=POLICIES[options.split],
        edges=options.edges,
        batch=batch,
    )
    return [_finished(*of) for of in zip(trees, pictures, reports, fits, strict=True)]


def _finished(tree: LayerTree, picture: np.ndarray, refinement: Refinement | None, fit: Exactness | None) -> Finished:
    leaves = tree.leaves()
    if fit is not None and tree.groups:
        leaves, last = exact(leaves, picture)
        tree = tree.with_leaves(leaves.layers)
        fit = dataclasses.replace(last, psnr_before=fit.psnr_before)
    report: dict[str, Any] = {
        "decisions": _decisions(tree),
        "health": dataclasses.asdict(health(list(leaves.layers))),
        **({} if refinement is None else {"refinement": refinement.report()}),
        **({} if fit is None else {"exact": {name: round(x, 4) for name, x in dataclasses.asdict(fit).items()}}),
    }
    return Finished(tree=tree, picture=picture, report=report)


def _decisions(tree: LayerTree, of: str = "") -> list[str]:
    """The decisions of a stack and of its groups, which name the group."""
    found = [of + decision for decision in tree.layered.decisions]
    for i, group in tree.groups.items():
        found += _decisions(group.tree, f"{of}{tree.layered.names[i]}: ")
    return found
