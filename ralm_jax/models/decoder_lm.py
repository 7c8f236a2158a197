"""Decoder-only models of the Llama family over contexts that have been read before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.models import attention, layers, rope
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.grouped_attention import GroupedQueryAttention, KeyValue, Slots
from ralm_jax.models.layers import Dense, Embed, MlpBlock, RMSNorm
from ralm_jax.models.rope import Rotation

# Standard deviation of the embedding at initialisation; the layers' is that of their width.
_EMBEDDING_STDDEV = 0.02


@flax.struct.dataclass
class Context:
  """Tokens that have been read, for later ones to attend to.

  Contexts divide the rows that read them: row r sees context r // (rows / contexts).

  Attributes:
    layers: keys and values of each layer; only the stack understands the names.
    mask: true on tokens; may have several rows for one context, which see other parts of it.
    positions: of the tokens in the text.
    local: what layers with a window hold, where that is not the same.
  """

  layers: Mapping[str, KeyValue]
  mask: Bool[Array, 'masks n']
  positions: Int[Array, 'contexts n']
  local: Slots | None = None

  def slots(self, local: bool) -> Slots:
    """What layers with or without a window hold."""
    return self.local if local and self.local is not None else Slots(self.mask, self.positions)

  def joined(self, k: int) -> Context:
    """Of b * k contexts, those of an example side by side: b contexts of k * n tokens."""

    def join(array: Array, axis: int) -> Array:
      shape = array.shape
      return array.reshape(*shape[:axis], shape[axis] // k, -1, *shape[axis + 2 :])

    keys = jax.tree.map(lambda array: join(array, array.ndim - 4), self.layers)
    slots = jax.tree.map(lambda array: join(array, 0), (self.mask, self.positions, self.local))
    return Context(keys, *slots)


def first_positions(contexts: Sequence[Context], rows: int) -> Int[Array, ' rows']:
  """Where rows begin: behind the furthest token that each sees."""
  first = jnp.zeros((rows,), jnp.int32)
  for context in contexts:
    positions = jnp.repeat(context.positions, len(context.mask) // len(context.positions), axis=0)
    end = jnp.max(jnp.where(context.mask, positions, -1), axis=1) + 1
    first = jnp.maximum(first, jnp.repeat(end, rows // len(end)))
  return first


@flax.struct.dataclass
class _Text:
  """What all layers know of the tokens that are read; each of the pairs is (global, local)."""

  slots: Slots
  rotations: tuple[Rotation, ...]
  earlier: tuple[tuple[Slots, ...], ...]
  norm_weights: Shaped[Array, 'rows t'] | None


def _norm(config: DecoderConfig, name: str) -> RMSNorm:
  return RMSNorm(config.norm_epsilon, config.dtype, config.param_dtype, name=name)


class DecoderLayer(nn.Module):
  """Attention and feed-forward, each behind a norm, or between two, and a residual."""

  config: DecoderConfig
  local: bool = False

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'rows t d'],
    earlier: tuple[KeyValue, ...],
    text: _Text,
    deterministic: bool,
  ) -> tuple[Float[Array, 'rows t d'], KeyValue]:
    config = self.config

    def add(hidden: Array, change: Array, name: str) -> Array:
      if config.post_norms:
        change = _norm(config, name)(change)
      hidden = hidden + nn.Dropout(config.dropout_rate)(change, deterministic=deterministic)
      return layers.constrain(hidden, 'batch', 'length', 'embed')

    attended, own = GroupedQueryAttention(config, self.local, name='attention')(
      _norm(config, 'pre_attention_norm')(hidden),
      text.rotations[self.local],
      text.slots,
      tuple(zip(earlier, text.earlier[self.local])),
      text.norm_weights,
    )
    hidden = add(hidden, attended, 'post_attention_norm')
    fed = MlpBlock(
      mlp_dim=config.mlp_dim,
      activations=config.mlp_activations,
      dtype=config.dtype,
      param_dtype=config.param_dtype,
      name='mlp',
    )(_norm(config, 'pre_mlp_norm')(hidden))
    return add(hidden, fed, 'post_mlp_norm'), own


def _layer(config: DecoderConfig, index: int, name: str) -> DecoderLayer:
  cls: Any = DecoderLayer
  if config.remat_policy != 'none':
    policy = layers.REMAT_POLICIES[config.remat_policy]
    cls = nn.remat(cls, policy=policy, prevent_cse=not config.scan_layers, static_argnums=(4,))
  return cls(config, config.is_local(index), name=name)


class Repetition(nn.Module):
  """The layers of one repetition of the pattern of local and global ones."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'rows t d'],
    earlier: Mapping[str, tuple[KeyValue, ...]],
    text: _Text,
    deterministic: bool,
  ) -> tuple[Float[Array, 'rows t d'], dict[str, KeyValue]]:
    own = {}
    for i, name in enumerate(earlier):
      hidden, own[name] = _layer(self.config, i, name)(hidden, earlier[name], text, deterministic)
    return hidden, own


class Decoder(nn.Module):
  """The stack over embedded tokens.

  Scanned, whole repetitions of the layer pattern are one module `layers`, whose parameters, keys
  and values have a leading axis; what is left over is `remainder_0`, ...
  """

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, 'rows t d'],
    contexts: Sequence[Context],
    text: _Text,
    *,
    deterministic: bool = True,
  ) -> tuple[Float[Array, 'rows t d'], dict[str, KeyValue]]:
    """Normed hidden states, and the keys and values of the tokens."""
    config = self.config
    depth, pattern = config.num_decoder_layers, len(config.layer_pattern) or 1
    hidden = nn.Dropout(config.dropout_rate)(hidden, deterministic=deterministic)
    own: dict[str, KeyValue] = {}

    def earlier(name: str) -> tuple[KeyValue, ...]:
      return tuple(context.layers[name] for context in contexts)

    repetitions = depth // pattern if config.scan_layers else 0
    if repetitions:
      names = [f'layer_{j}' for j in range(pattern)]
      scanned = nn.scan(
        lambda block, hidden, earlier: block(hidden, earlier, text, deterministic),
        variable_axes={'params': 0, attention.NORMS: 0},
        split_rngs={'params': True, 'dropout': True},
        length=repetitions,
        metadata_params={nn.PARTITION_NAME: 'layers'},
      )
      hidden, own = scanned(
        Repetition(config, name='layers'), hidden, {name: earlier(name) for name in names}
      )
    rest = 'remainder' if config.scan_layers else 'layers'
    for j in range(depth - repetitions * pattern):
      name = f'{rest}_{j}'
      hidden, own[name] = _layer(config, j, name)(hidden, earlier(name), text, deterministic)
    return _norm(config, 'decoder_norm')(hidden), own


class DecoderLM(nn.Module):
  """Embedding, stack and head."""

  config: DecoderConfig

  def setup(self):
    config = self.config
    self.token_embedder = Embed(
      config.vocab_size,
      config.emb_dim,
      embedding_init=nn.initializers.normal(_EMBEDDING_STDDEV),
      dtype=config.dtype,
      param_dtype=config.param_dtype,
    )
    self.decoder = Decoder(config)
    if not config.logits_via_embedding:
      self.logits_dense = Dense(
        config.vocab_size,
        kernel_axes=('embed', 'vocab'),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        output_dtype=jnp.float32,
      )

  def logits(self, hidden: Float[Array, 'rows t d']) -> Float[Array, 'rows t v']:
    """In float32."""
    head = self.token_embedder.attend if self.config.logits_via_embedding else self.logits_dense
    return layers.constrain(head(hidden), 'batch', 'length', 'vocab')

  def read(
    self,
    tokens: Int[Array, 'rows t'],
    mask: Shaped[Array, 'rows t'],
    contexts: Sequence[Context] = (),
    *,
    deterministic: bool = True,
    norm_weights: Shaped[Array, 'rows t'] | None = None,
    logits: int | None = None,
    lengths: Int[Array, ' rows'] | None = None,
  ) -> tuple[Float[Array, 'rows last v'] | None, Context]:
    """Reads tokens behind contexts, all of which they see, and causally each other.

    The first token of a row stands at the position behind the furthest one of its contexts, so that
    contexts which have been read apart, behind one head, are at the same positions. Where the
    collection `attention.NORMS` is mutable, each layer leaves the norms of all keys there, those of
    the contexts first.

    Args:
      mask: true on tokens, which may have padding on either side and holes.
      norm_weights: how much each position counts in the attention norms; None is 1 each.
      logits: of how many of the last slots; None is of all, 0 gives None.
      lengths: positions that each row has in the end, see `rope.rotation`.
    """
    config, mask, rows = self.config, mask.astype(bool), len(tokens)
    start = first_positions(contexts, rows)[:, None]
    positions = start + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    kinds = (False, True)
    text = _Text(
      Slots(mask, positions),
      tuple(rope.rotation(config, local, positions, lengths) for local in kinds),
      tuple(tuple(context.slots(local) for context in contexts) for local in kinds),
      norm_weights,
    )
    hidden = self.token_embedder(tokens)
    if config.scale_embedding:
      hidden = hidden * jnp.asarray(config.emb_dim**0.5, hidden.dtype)
    hidden = layers.constrain(hidden, 'batch', 'length', 'embed')
    hidden, own = self.decoder(hidden, contexts, text, deterministic=deterministic)
    last = hidden if logits is None else hidden[:, hidden.shape[1] - logits :]
    return (None if logits == 0 else self.logits(last)), Context(own, mask, positions)

  def __call__(
    self, tokens: Int[Array, 'rows t'], mask: Shaped[Array, 'rows t'], *, deterministic: bool = True
  ) -> Float[Array, 'rows t v']:
    """Logits of what follows each token."""
    found: Any = self.read(tokens, mask, deterministic=deterministic)[0]
    return found


def attention_norms(variables: PyTree, last_layers: int | None = None) -> Float[Array, 'rows keys']:
  """The norms that `read` has left, summed over the last layers; None counts all."""
  collection = variables[attention.NORMS]['decoder']
  by_layer: list[Array] = []
  if 'layers' in collection:
    scanned = [collection['layers'][name] for name in sorted(collection['layers'], key=_number)]
    stacked = jnp.stack([layer['attention']['by_key'][0] for layer in scanned], axis=1)
    by_layer += list(stacked.reshape(-1, *stacked.shape[2:]))
  rest = sorted((name for name in collection if name != 'layers'), key=_number)
  by_layer += [collection[name]['attention']['by_key'][0] for name in rest]
  kept = by_layer[-(last_layers or len(by_layer)) :]
  return sum(kept, jnp.zeros_like(kept[0]))


def _number(name: str) -> int:
  return int(name.rpartition('_')[2])
