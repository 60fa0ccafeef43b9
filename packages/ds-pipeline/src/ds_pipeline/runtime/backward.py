"""Backward of one stage for one micro-batch: whole, or for its inputs now and for its weights later.

Note [Two parts]
    The graph of a stage has a chain, the nodes through which its inputs are reached, and branches that leave the chain
    and end in weights. The first part runs the chain only, with hooks that keep what enters each node a branch leaves
    from. The second part starts at those nodes with what was kept and runs the branches only, so nothing of the chain
    is computed twice. A weight that several branches lead to (a layer used twice in a stage) cannot be told apart so:
    for such weights the second part runs the chain again.

    Source: Qi et al., Zero Bubble Pipeline Parallelism, 2023, section 2: the split of B into B and W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

__all__ = ["Ends", "backward_inputs", "backward_whole"]

Gradients = Sequence[torch.Tensor | None]


class Ends:
    """A stage's graph by its ends.

    Attributes:
        inputs: leaves that a gradient is wanted for, in order.
        outputs: what carries a graph, in order.
    """

    __slots__ = ("inputs", "outputs")

    def __init__(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        self.inputs: list[torch.Tensor] = list(inputs)
        self.outputs: list[torch.Tensor] = list(outputs)


def backward_whole(ends: Ends, gradients: Gradients) -> list[torch.Tensor]:
    """Adds gradients to the weights, and gives those of the inputs; zeros for an input that was not used.

    Args:
        ends: of the graph, which is freed.
        gradients: of the outputs; None is 1, for a loss.
    """
    if ends.outputs:
        torch.autograd.backward(ends.outputs, list(gradients))
    found = [_or_zeros(leaf.grad, leaf) for leaf in ends.inputs]
    for leaf in ends.inputs:
        leaf.grad = None
    return found


def backward_inputs(ends: Ends, gradients: Gradients) -> tuple[list[torch.Tensor], Callable[[], None]]:
    """Gradients of the inputs, and a function that adds those of the weights later; see Note [Two parts].

    The function keeps the graph until it was called.
    """
    gradients = list(gradients)
    if not ends.inputs or not ends.outputs:
        return [_or_zeros(None, leaf) for leaf in ends.inputs], lambda: _discard(backward_whole(ends, gradients))
    chain = _Chain(ends)
    kept: dict[Node, tuple[torch.Tensor | None, ...]] = {}
    hooks = [node.register_prehook(_keeper(kept, node)) for node in chain.branches]
    try:
        found = torch.autograd.grad(ends.outputs, ends.inputs, gradients, retain_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()

    def weights() -> None:
        for node, parameters in chain.branches.items():
            values = kept.get(node, ())
            edges = [GradientEdge(node, place) for place, value in enumerate(values) if value is not None]
            if edges:
                entered = [value for value in values if value is not None]
                torch.autograd.backward(edges, entered, inputs=parameters, retain_graph=True)
        if chain.shared:
            torch.autograd.backward(ends.outputs, gradients, inputs=chain.shared, retain_graph=True)

    return [_or_zeros(gradient, leaf) for gradient, leaf in zip(found, ends.inputs, strict=True)], weights


def _or_zeros(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _discard(value: Any) -> None:
    """A function of a value that gives nothing."""


def _keeper(kept: dict[Node, tuple[torch.Tensor | None, ...]], node: Node) -> Callable[[Any], None]:
    def keep(entering: tuple[torch.Tensor | None, ...]) -> None:
        kept[node] = tuple(entering)

    return keep


class _Chain:
    """The nodes between inputs and outputs, and the weights that hang on them.

    Attributes:
        branches: for each node of the chain with weights of its own: those.
        shared: weights that several nodes lead to, or that hang on an output without a path to the inputs.
    """

    def __init__(self, ends: Ends) -> None:
        targets = {get_gradient_edge(leaf).node for leaf in ends.inputs}
        roots = [get_gradient_edge(output).node for output in ends.outputs]
        order = _topological(roots)
        on_chain: dict[Node, bool] = {}
        leads_to: dict[Node, dict[Node, None]] = {}  # for a node off the chain: the ends of its branches, in order
        for node in order:  # children first
            children = _children(node)
            on_chain[node] = node in targets or any(on_chain[child] for child in children)
            if not on_chain[node]:
                ends_here = {node: None} if hasattr(node, "variable") else {}
                for child in children:
                    ends_here.update(leads_to[child])
                leads_to[node] = ends_here
        owners: dict[Node, list[Node | None]] = {}
        for node in order:
            if on_chain[node] and node not in targets:
                for child in _children(node):
                    if not on_chain[child]:
                        for end in leads_to[child]:
                            owners.setdefault(end, []).append(node)
        for root in roots:
            if not on_chain[root]:
                for end in leads_to[root]:
                    owners.setdefault(end, []).append(None)
        self.branches: dict[Node, list[torch.Tensor]] = {}
        self.shared: list[torch.Tensor] = []
        for end, nodes in owners.items():
            weight: torch.Tensor = end.variable  # type: ignore[attr-defined]
            first = nodes[0]
            if first is None or any(other is not first for other in nodes):
                self.shared.append(weight)
            else:
                self.branches.setdefault(first, []).append(weight)


def _children(node: Node) -> list[Node]:
    following: Sequence[tuple[Node | None, int]] = node.next_functions
    return [child for child, _ in following if child is not None]


def _topological(roots: Sequence[Node]) -> list[Node]:
    """Every node reachable from `roots`, each after all it leads to."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack.extend((child, False) for child in _children(node) if child not in seen)
    return order
