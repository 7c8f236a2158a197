"""Rotary position embeddings (Su et al. 2021) with the published ways of stretching them."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from ralm_jax.losses.array_types import Array, Float, Int
from ralm_jax.models.decoder_config import DecoderConfig, RopeScaling

# Cosine and sine for each position and pair of features.
Rotation = tuple[Float[Array, 'rows t half'], Float[Array, 'rows t half']]


def rotation(
  config: DecoderConfig,
  local: bool,
  positions: Int[Array, 'rows t'],
  lengths: Int[Array, ' rows'] | None = None,
) -> Rotation:
  """Cosines and sines in float32, for layers with or without a window.

  Args:
    lengths: positions that each row has in the end, which `dynamic` scaling depends on; None: those
      up to its largest here.
  """
  scaling, base = config.rope_scaling, config.rope_base
  if local and config.local_rope_base is not None:
    scaling, base = None, config.local_rope_base
  exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
  factor = 1.0
  if scaling is not None and scaling.kind == 'dynamic':
    if lengths is None:
      lengths = jnp.max(positions, axis=1) + 1
    frequencies = _dynamic(scaling, base, config, lengths)[:, None] ** -jnp.asarray(
      exponents, jnp.float32
    )
  else:
    plain = base**-exponents
    if scaling is not None:
      plain, factor = _STRETCHED[scaling.kind](scaling, plain, base, config)
    frequencies = jnp.asarray(plain, jnp.float32)[None]
  angles = positions[..., None].astype(jnp.float32) * frequencies[:, None]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
  heads: Float[Array, 'rows t h e'], rotation: Rotation, scale: float = 1.0
) -> Float[Array, 'rows t h e']:
  """Turns the pair of feature i and i + e/2 by its angle, as transformers orders them."""
  cos, sin = (part[:, :, None] * scale for part in rotation)
  first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(heads.dtype)


def _original(scaling: RopeScaling, config: DecoderConfig) -> int:
  return scaling.original_max_positions or config.max_positions


def _dynamic(
  scaling: RopeScaling, base: float, config: DecoderConfig, lengths: Int[Array, ' rows']
) -> Float[Array, ' rows']:
  """The base that grows with the length once that passes what the model was trained with."""
  original, dim = _original(scaling, config), config.head_dim
  stretch = scaling.factor * jnp.maximum(lengths, original) / original - (scaling.factor - 1)
  return base * stretch.astype(jnp.float32) ** (dim / (dim - 2))


def _linear(
  scaling: RopeScaling, frequencies: np.ndarray, base: float, config: DecoderConfig
) -> tuple[np.ndarray, float]:
  del base, config
  return frequencies / scaling.factor, 1.0


def _llama3(
  scaling: RopeScaling, frequencies: np.ndarray, base: float, config: DecoderConfig
) -> tuple[np.ndarray, float]:
  """Leaves high frequencies, divides low ones and blends those between."""
  del base
  turns = _original(scaling, config) * frequencies / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return frequencies * (kept + (1 - kept) / scaling.factor), 1.0


def _yarn(
  scaling: RopeScaling, frequencies: np.ndarray, base: float, config: DecoderConfig
) -> tuple[np.ndarray, float]:
  dim, original = config.head_dim, _original(scaling, config)

  def feature_of(turns: float) -> float:
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

  low = max(math.floor(feature_of(scaling.beta_fast)), 0)
  high = min(math.ceil(feature_of(scaling.beta_slow)), dim - 1)
  ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
  factor = scaling.attention_factor
  if factor is None:
    factor = 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
  return frequencies * (1 - ramp + ramp / scaling.factor), factor


_STRETCHED = {'linear': _linear, 'llama3': _llama3, 'yarn': _yarn}
