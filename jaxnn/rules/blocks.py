"""Work on an axis block by block: for arrays whose whole would not fit in memory, or not in the cache."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.rules.cotangents import accumulation_dtype, cotangent, type_of

T = TypeVar("T")


def over_blocks(size: int, block: int, step: Callable[[T, Array, Array | None], T], carry: T) -> T:
    """Fold `step(carry, start, fresh)` over the blocks of an axis.

    The last block ends at the axis's end, so it may overlap the one before.

    `fresh` tells which elements of a block were in no earlier block; None if all of them.
    """
    blocks = -(-size // block)
    if blocks <= 1:
        return step(carry, jnp.int32(0), None) if blocks else carry

    # With checkpoint, a second derivative recomputes the values of a block, and does not keep those of all blocks.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def next_block(carry: T, number: Array) -> tuple[T, None]:
        first = number * block
        start = jnp.minimum(first, size - block)
        fresh = None if size % block == 0 else start + jnp.arange(block, dtype=first.dtype) >= first
        return step(carry, start, fresh), None

    return lax.scan(next_block, carry, jnp.arange(blocks, dtype=jnp.int32))[0]


def add_at(start: Array, sums: Any, parts: Any) -> Any:
    """Add a block's parts to the sums from `start` on, in the type of the sums."""

    def add(total: Array, part: Array) -> Array:
        so_far, part = lax.dynamic_slice_in_dim(total, start, len(part)), cotangent(part, type_of(total))
        added = so_far.astype(accumulation_dtype(total.dtype)) + part.astype(accumulation_dtype(total.dtype))
        return lax.dynamic_update_slice_in_dim(total, added.astype(total.dtype), start, 0)

    return jax.tree.map(add, sums, parts)


def rows_that_fit(size: int, elements: int) -> int:
    """Return how many rows of `elements` float32 numbers fit in `size` bytes: a power of two, at least 32.

    A block of fewer rows than 32 would be a narrow matrix, and its products slow; then a block is larger than `size`.
    """
    return 1 << max(5, (size // (4 * max(1, elements))).bit_length() - 1)


def least_overlapping(size: int, block: int) -> int:
    """Return a block length of at most `block` that needs no more blocks and overlaps least.

    It is `block`, `size`, or a multiple of 8, the float32 numbers of one AVX register.
    """
    if size == 0:
        return 1
    blocks = -(-size // block)
    return min(block, size, -(-size // (8 * blocks)) * 8)
