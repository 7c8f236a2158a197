"""An initialisation under which a small reader learns to copy early.

A reader answers by copying from a passage. Trained from scratch with T5's own initialisation it
takes long to find the two steps that copying needs: carrying a token's identity through attention,
and looking at the token next to the one just written. Here attention carries identity from the
start (its output map undoes its value map), and the relative position bias is strong enough to look
at neighbours. Pre-trained weights need none of this.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array

Params = Any


def copying_init(reader: Params, rng: Array, *, relative_bias_stddev: float = 2.0) -> Params:
  """Replaces value, output and position parameters of a T5 reader.

  Every attention's value kernel gets orthonormal columns, and its output kernel is the transpose.

  Args:
    reader: unboxed.
    relative_bias_stddev: of both relative position tables; T5's is about 0.1.

  Raises:
    ValueError: for scanned layers.
  """

  def replace(path: tuple[str, ...], tree: Params) -> Params:
    if not isinstance(tree, dict):
      return tree
    tree = {name: replace((*path, name), child) for name, child in tree.items()}
    # One key for every module, whatever the order of the tree.
    key = rng
    for name in path:
      key = jax.random.fold_in(key, sum(map(ord, name)) % 2**31)
    if {'query', 'key', 'value', 'out'} <= tree.keys():
      kernel = tree['value']['kernel']
      if kernel.ndim != 2:
        raise ValueError(
          'copying_init needs unscanned layers; set T5Config.scan_layers to '
          'False (gin: SCAN_LAYERS).'
        )
      value = jax.nn.initializers.orthogonal()(key, kernel.shape, kernel.dtype)
      tree['value'] = {**tree['value'], 'kernel': value}
      tree['out'] = {**tree['out'], 'kernel': value.T}
    if 'rel_embedding' in tree:
      table = tree['rel_embedding']
      tree['rel_embedding'] = relative_bias_stddev * jax.random.normal(
        key, table.shape, jnp.float32
      ).astype(table.dtype)
    return tree

  return replace((), reader)
