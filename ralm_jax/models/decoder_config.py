"""Shapes and numbers of a decoder-only model of the Llama family."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count, Dropout, Dtype, Number, Positive


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary positions are stretched beyond those of pre-training.

  `linear` divides positions by the factor (Chen et al. 2023), `llama3` only low frequencies (Llama
  3.1's), `yarn` is Peng et al. 2023 (section 3.4), `dynamic` raises the base with the length.
  """

  kind: Literal['linear', 'llama3', 'yarn', 'dynamic']
  factor: Positive
  original_max_positions: Count | None = None  #: None: the model's own
  low_frequency_factor: Positive = 1.0  #: of llama3
  high_frequency_factor: Positive = 4.0  #: of llama3
  beta_fast: Positive = 32.0  #: of yarn
  beta_slow: Positive = 1.0  #: of yarn
  attention_factor: Positive | None = None  #: of yarn; None computes it of the factor

  def __post_init__(self):
    option_types.check_fields(self)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Llama 2 and 3, SmolLM2, Mistral, Qwen 2.5 and 3, Gemma 3 (text); defaults are Llama's."""

  vocab_size: Count = 32000
  emb_dim: Count = 4096
  num_heads: Count = 32
  num_kv_heads: Count = 32  #: groups of heads share keys and values
  head_dim: Count = 128
  num_decoder_layers: Count = 32
  mlp_dim: Count = 11008
  mlp_activations: tuple[str, ...] = ('silu', 'linear')  #: Gemma: ('gelu', 'linear')
  norm_epsilon: Positive = 1e-5
  logits_via_embedding: bool = False  #: the head is the embedding table
  max_positions: Count = 4096
  rope_base: Positive = 10_000.0  #: of layers that attend to all positions
  local_rope_base: Positive | None = None  #: of layers with a window; None is `rope_base`
  rope_scaling: RopeScaling | None = None  #: not of local layers that have a base of their own
  window: Count | None = None  #: positions a local layer attends to, its own included
  #: "local" or "global", repeated over the layers: Gemma 3 has five local ones to a global one. If
  #: there is a window and no pattern, all are local (Mistral).
  layer_pattern: tuple[str, ...] = ()
  attention_bias: bool = False  #: of queries, keys and values (Qwen 2.5)
  query_key_norm: bool = False  #: over each head (Qwen 3, Gemma 3)
  post_norms: bool = False  #: norms behind attention and feed-forward, too (Gemma 3)
  scale_embedding: bool = False  #: by sqrt(emb_dim) (Gemma)
  query_scale: Positive | None = None  #: of scores; None is 1/sqrt(head_dim)
  dropout_rate: Dropout = 0.0  #: behind embedding, attention and feed-forward
  bos_id: Number | None = None
  eos_id: Number = 2
  pad_id: Number = 0  #: never that of the end of sequence
  dtype: Dtype = 'float32'
  param_dtype: Dtype = 'float32'
  # One compiled repetition of the layer pattern for the whole stack; faster to compile when deep.
  scan_layers: bool = False
  # 'none', 'dots' (save matrix products without batch axes) or 'full'.
  remat_policy: Literal['none', 'dots', 'full'] = 'none'

  def __post_init__(self):
    # gin and JSON hand over lists and mappings; a config must stay hashable for jit.
    for name in ('mlp_activations', 'layer_pattern'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    scaling: Any = self.rope_scaling
    if isinstance(scaling, Mapping):
      object.__setattr__(self, 'rope_scaling', RopeScaling(**scaling))
    option_types.check_fields(self)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'DecoderConfig.num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}.'
      )
    if not set(self.layer_pattern) <= {'local', 'global'}:
      raise ValueError(
        f"DecoderConfig.layer_pattern {self.layer_pattern} must hold 'local' and 'global' alone."
      )
    if 'local' in self.layer_pattern and self.window is None:
      raise ValueError('DecoderConfig.layer_pattern has local layers; set window.')

  def is_local(self, layer: int) -> bool:
    """Whether a layer attends to a window alone."""
    if self.window is None:
      return False
    pattern = self.layer_pattern or ('local',)
    return pattern[layer % len(pattern)] == 'local'
