"""Grouped-query attention to several sets of keys, each of which several rows may share.

A set of keys belongs to consecutive rows, as many to each: a prompt's to the beams of its example,
that of shared demonstrations to the whole batch. It is never repeated in memory, neither for those
rows nor for the heads that share it.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Int, Shaped
from ralm_jax.models import attention, layers, rope
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.layers import Dense, RMSNorm
from ralm_jax.models.rope import Rotation

# Longer texts attend in parts, so that no more scores than those of so many queries exist at once.
QUERIES_AT_ONCE = 1024


@flax.struct.dataclass
class KeyValue:
  """Rotated keys and values of one layer."""

  key: Float[Array, '*layers contexts n kv e']
  value: Float[Array, '*layers contexts n kv e']


@flax.struct.dataclass
class Slots:
  """Which keys there are and at which positions of the text.

  The mask may have several rows for one of positions: rows that see other parts of the same keys.
  """

  mask: Bool[Array, 'masks n']
  positions: Int[Array, 'contexts n']


Attended = tuple[Float[Array, 'rows t h e'], Float[Array, 'rows keys'] | None]


def attend(
  query: Float[Array, 'rows t h e'],
  positions: Int[Array, 'rows t'],
  sources: Sequence[tuple[KeyValue, Slots]],
  window: int | None = None,
  norm_weights: Shaped[Array, 'rows t'] | None = None,
) -> Attended:
  """One softmax, in float32, over the keys of all sources together.

  A query sees keys that are there, at its own position or before, and with a window fewer than
  `window` positions before.

  Returns:
    What was attended to; with the weights of each query also `attention.attention_norms` of all
    keys, one source after the other.
  """
  length = query.shape[1]
  if length <= QUERIES_AT_ONCE:
    return _attend_at_once(query, positions, sources, window, norm_weights)
  padding = -length % QUERIES_AT_ONCE

  def split(array: Shaped[Array, 'rows t *rest']) -> Shaped[Array, 'parts rows part *rest']:
    padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
    return jnp.moveaxis(padded.reshape(len(array), -1, QUERIES_AT_ONCE, *array.shape[2:]), 1, 0)

  @jax.checkpoint
  def attend_part(part: tuple[Array, Array, Array | None]) -> Attended:
    query, positions, norm_weights = part
    return _attend_at_once(query, positions, sources, window, norm_weights)

  parts = jax.tree.map(split, (query, positions, norm_weights))
  attended, norms = jax.lax.map(attend_part, parts)
  attended = jnp.moveaxis(attended, 0, 1).reshape(len(query), -1, *query.shape[2:])
  return attended[:, :length], None if norms is None else jnp.sum(norms, axis=0)


def _attend_at_once(
  query: Float[Array, 'rows t h e'],
  positions: Int[Array, 'rows t'],
  sources: Sequence[tuple[KeyValue, Slots]],
  window: int | None,
  norm_weights: Shaped[Array, 'rows t'] | None,
) -> Attended:
  rows, length, heads, _ = query.shape
  scores = []
  for keys, slots in sources:
    grouped = _of_contexts(query, keys)
    products = jnp.einsum(
      'ckrgtd,cnkd->ckrgtn', grouped, keys.key, preferred_element_type=jnp.float32
    )
    seen = _seen(positions, slots, window)
    seen = seen.reshape(len(keys.key), 1, -1, 1, *seen.shape[1:])
    scores.append(jnp.where(seen, products, layers.MASK_BIAS))

  def of_rows(statistic: Float[Array, 'contexts kv r group t']) -> Float[Array, 'rows kv group t']:
    return jnp.moveaxis(statistic, 2, 1).reshape(rows, statistic.shape[1], -1, length)

  def of_contexts(
    statistic: Float[Array, 'rows kv group t'], like: Array
  ) -> Float[Array, 'contexts kv r group t 1']:
    contexts = len(like)
    split = statistic.reshape(contexts, -1, *statistic.shape[1:])
    return jnp.moveaxis(split, 1, 2)[..., None]

  peak = functools.reduce(jnp.maximum, [of_rows(jnp.max(part, axis=-1)) for part in scores])
  peak = jax.lax.stop_gradient(peak)
  weights = [jnp.exp(part - of_contexts(peak, part)) for part in scores]
  total = functools.reduce(jnp.add, [of_rows(jnp.sum(part, axis=-1)) for part in weights])
  # Divided by their total once they are summed: scores are many, what is attended to is little.
  attended = jnp.zeros((), jnp.float32)
  for part, (keys, _) in zip(weights, sources):
    mixed = jnp.einsum(
      'ckrgtn,cnkd->ckrgtd',
      part.astype(keys.value.dtype),
      keys.value,
      preferred_element_type=jnp.float32,
    )
    mixed = jnp.transpose(mixed / of_contexts(total, part), (0, 2, 4, 1, 3, 5))
    attended = attended + mixed.reshape(rows, length, heads, -1)
  norms = None
  if norm_weights is not None:
    probabilities = [part / of_contexts(total, part) for part in weights]
    norms = _norms(probabilities, [keys.value for keys, _ in sources], norm_weights)
  return attended.astype(query.dtype), norms


def _of_contexts(
  query: Float[Array, 'rows t h e'], keys: KeyValue
) -> Float[Array, 'contexts kv r group t e']:
  """The queries by context, the rows of a context and the heads of one key head side by side."""
  _, length, heads, features = query.shape
  contexts, _, kv_heads, _ = keys.key.shape
  split = query.reshape(contexts, -1, length, kv_heads, heads // kv_heads, features)
  return jnp.transpose(split, (0, 3, 1, 4, 2, 5))


def _seen(
  positions: Int[Array, 'rows t'], slots: Slots, window: int | None
) -> Bool[Array, 'rows t n']:
  rows = len(positions)
  mask = jnp.repeat(slots.mask, rows // len(slots.mask), axis=0)[:, None]
  keys = jnp.repeat(slots.positions, rows // len(slots.positions), axis=0)[:, None]
  distance = positions[..., None] - keys
  seen = mask & (distance >= 0)
  return seen if window is None else seen & (distance < window)


def _norms(
  probabilities: Sequence[Float[Array, '_ _ _ _ t _']],
  values: Sequence[Float[Array, '_ _ _ e']],
  weights: Shaped[Array, 'rows t'],
) -> Float[Array, 'rows keys']:
  norms = []
  for part, value in zip(probabilities, values):
    contexts, kv_heads, rows, group, length, _ = part.shape
    of_queries = weights.astype(jnp.float32).reshape(contexts, rows, length)
    taken = jnp.einsum('ckrgtn,crt->crnk', part, of_queries)
    size = jnp.linalg.norm(value.astype(jnp.float32), axis=-1)[:, None]
    norms.append(jnp.sum(taken * size, axis=-1) / (kv_heads * group))
  flat = [part.reshape(-1, part.shape[-1]) for part in norms]
  return jax.lax.stop_gradient(jnp.concatenate(flat, axis=-1))


class GroupedQueryAttention(nn.Module):
  """Projections of own tokens, which attend to earlier keys and causally to each other."""

  config: DecoderConfig
  local: bool = False  #: attends to the window alone

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'rows t d'],
    rotation: Rotation,
    slots: Slots,
    earlier: Sequence[tuple[KeyValue, Slots]] = (),
    norm_weights: Shaped[Array, 'rows t'] | None = None,
  ) -> tuple[Float[Array, 'rows t d'], KeyValue]:
    """What is attended to, and keys and values of the own tokens, which `slots` are of."""
    config = self.config

    def project(name: str, heads: int) -> Float[Array, 'rows t heads e']:
      projected = Dense(
        heads * config.head_dim,
        kernel_axes=('embed', 'joined_kv'),
        use_bias=config.attention_bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        name=name,
      )(hidden)
      projected = projected.reshape(*hidden.shape[:2], heads, config.head_dim)
      return layers.constrain(projected, 'batch', 'length', 'heads', 'kv')

    def normed(heads: Float[Array, 'rows t heads e'], name: str) -> Float[Array, 'rows t heads e']:
      if not config.query_key_norm:
        return heads
      norm = RMSNorm(config.norm_epsilon, config.dtype, config.param_dtype, name=name)
      return norm(heads)

    query = normed(project('query', config.num_heads), 'query_norm')
    key = normed(project('key', config.num_kv_heads), 'key_norm')
    query = rope.rotate(query, rotation, config.query_scale or config.head_dim**-0.5)
    own = KeyValue(rope.rotate(key, rotation), project('value', config.num_kv_heads))
    sources = [*earlier, (own, slots)]
    if not self.is_mutable_collection(attention.NORMS) or self.is_initializing():
      norm_weights = None
    elif norm_weights is None:
      norm_weights = jnp.ones(hidden.shape[:2])
    window = config.window if self.local else None
    attended, norms = attend(query, slots.positions, sources, window, norm_weights)
    if norms is not None:
      self.sow(attention.NORMS, 'by_key', norms)
    out = Dense(
      hidden.shape[-1],
      kernel_axes=('joined_kv', 'embed'),
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='out',
    )(attended.reshape(*hidden.shape[:2], -1))
    return out, own
