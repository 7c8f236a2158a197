"""Shapes in signatures: `Float[Array, 'b k t']`, by jaxtyping.

The letters are the same everywhere: b batch, k passages retrieved, n passages
read, q query length, p passage length of the retriever, s input length of the
reader, t target length, v vocabulary, d embedding size, h heads. Tests check
them at run time; a machine with jax, flax and optax alone reads past them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax import Array

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Int, PyTree, Shaped
else:
  try:
    from jaxtyping import Bool, Float, Int, PyTree, Shaped
  except ImportError:

    class _Unchecked:
      def __class_getitem__(cls, _):
        return Any

    Bool = Float = Int = PyTree = Shaped = _Unchecked

__all__ = ['Array', 'Bool', 'Float', 'Int', 'PyTree', 'Shaped']
