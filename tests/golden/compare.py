"""Compares two results bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.results import Result


def first_difference(base: Result, head: Result) -> str:
    """Returns the name of the first difference and both values, or an empty string for identical results.

    Numbers and groups of tensors must be there on both sides. A comparison of nothing is a difference, too: an empty
    file must not pass for a proof.
    """
    if not base.numbers and not head.numbers:
        return "no numbers to compare"
    for name in base.numbers | head.numbers:
        left, right = base.numbers.get(name, "missing"), head.numbers.get(name, "missing")
        if left != right:
            return f"{name}: {left} != {right}"
    for group in base.tensors | head.tensors:
        left, right = base.tensors.get(group, []), head.tensors.get(group, [])
        if not left and not right:
            return f"no {group} to compare"
        if len(left) != len(right):
            return f"{group}: {len(left)} tensors != {len(right)} tensors"
        for place, pair in enumerate(zip(left, right, strict=True)):
            difference = tensor_difference(*pair)
            if difference:
                return f"{group}[{place}]{difference}"
    return ""


def tensor_difference(left: Tensor, right: Tensor) -> str:
    """Returns the first element in which two tensors differ, or an empty string if type, shape and all bits are equal.

    Values would not do: ``0.0 == -0.0``, and no NaN equals itself.
    """
    kinds = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in (left, right)]
    if kinds[0] != kinds[1]:
        return f": {kinds[0]} != {kinds[1]}"
    left, right = left.reshape(-1), right.reshape(-1)
    unequal = (as_bytes(left) != as_bytes(right)).any(1).nonzero()
    if not len(unequal):
        return ""
    element = int(unequal[0])
    return f" {kinds[0]}, element {element}: {left[element].item()!r} != {right[element].item()!r}"


def as_bytes(tensor: Tensor) -> Tensor:
    """Returns the bytes of a flat tensor, uint8 ``[N, size of an element]``."""
    return tensor.contiguous().view(torch.uint8).reshape(len(tensor), tensor.element_size())
