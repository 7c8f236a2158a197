"""How rotary positions are stretched, in config.json of transformers 4 and 5."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ralm_jax.interop import config_fields
from ralm_jax.models.decoder_config import DecoderConfig, RopeScaling

Json = dict[str, Any]
# Theirs by ours, of the kinds that have them.
_NUMBERS = {
  'low_frequency_factor': ('low_freq_factor', ('llama3',)),
  'high_frequency_factor': ('high_freq_factor', ('llama3',)),
  'beta_fast': ('beta_fast', ('yarn',)),
  'beta_slow': ('beta_slow', ('yarn',)),
  'attention_factor': ('attention_factor', ('yarn',)),
}
_KINDS = ('default', 'linear', 'llama3', 'yarn', 'dynamic')
_WITH_ORIGINAL = ('llama3', 'yarn')
_ORIGINAL = 'original_max_position_embeddings'
_KNOWN = {'rope_type', 'type', 'rope_theta', 'factor', _ORIGINAL, 'mscale', 'mscale_all_dim'}
_KNOWN |= {theirs for theirs, _ in _NUMBERS.values()}
_FIXED: dict[str, tuple[Any, ...]] = {
  'partial_rotary_factor': (1,),
  'truncate': (True,),
  'finetuned': (True, False),
}


def read(raw: Json, where: str, positions: int, local_base: float | None = None) -> Json:
  """Fields of `DecoderConfig`.

  Args:
    positions: what the model has, where its scaling does not say what it was first trained with.
    local_base: of layers with a window, where nothing is said; None for models without their own.

  Raises ValueError for a kind of scaling, or a field of one, that we do not compute.
  """
  said = raw.get('rope_scaling') or raw.get('rope_parameters') or {}
  if not isinstance(said, dict):
    raise ValueError(f'{where}: rope_parameters are {said!r}, expected an object.')
  base = config_fields.positive(raw, 'rope_theta', where, 10_000.0)
  nested = bool({'full_attention', 'sliding_attention'} & said.keys())
  fields: Json = {}
  if local_base is not None:
    base_said = config_fields.positive(raw, 'rope_local_base_freq', where, local_base)
    sliding = (said.get('sliding_attention') or {}) if nested else {}
    fields['local_rope_base'], scaling = _one(sliding, where, positions, base_said)
    if scaling is not None:
      raise ValueError(
        f'{where}: rope_parameters of sliding_attention are of rope_type {scaling.kind!r}, which '
        'is not computed here; only "default" is.'
      )
  elif nested:
    raise ValueError(f'{where}: rope_parameters by kind of attention are not computed here.')
  own = (said.get('full_attention') or {}) if nested else said
  partial = {'partial_rotary_factor': raw.get('partial_rotary_factor')}
  fields['rope_base'], fields['rope_scaling'] = _one(partial | own, where, positions, base)
  return fields


def _one(said: Json, where: str, positions: int, base: float) -> tuple[float, RopeScaling | None]:
  where = f'{where} (rope_parameters)'
  base = float(config_fields.positive(said, 'rope_theta', where, base))
  kind: Any = said.get('rope_type', said.get('type', 'default'))
  if kind not in _KINDS:
    known = ', '.join(_KINDS)
    raise ValueError(f'{where}: rope_type {kind!r} is not computed here; only {known} are.')
  for name, value in said.items():
    if value is not None and name not in _KNOWN and value not in _FIXED.get(name, ()):
      raise ValueError(f'{where}: {name} is {value!r}, which is not computed here.')
  if kind == 'default':
    return base, None
  fields: Json = {}
  if kind in _WITH_ORIGINAL:
    fields['original_max_positions'] = config_fields.whole_number(said, _ORIGINAL, where, positions)
  implied = positions / fields['original_max_positions'] if kind == 'yarn' else None
  factor = float(config_fields.positive(said, 'factor', where, implied))
  for ours, (theirs, kinds) in _NUMBERS.items():
    if kind in kinds and said.get(theirs) is not None:
      fields[ours] = float(config_fields.positive(said, theirs, where))
  scales: list[Any] = [said.get(name) for name in ('mscale', 'mscale_all_dim')]
  if kind == 'yarn' and 'attention_factor' not in fields and all(scales):
    over, under = (1 if factor <= 1 else 0.1 * scale * math.log(factor) + 1 for scale in scales)
    fields['attention_factor'] = over / under
  return base, RopeScaling(kind=kind, factor=factor, **fields)


def write(config: DecoderConfig, by_kind: bool) -> Json:
  """rope_parameters of all layers, or one of those with a window and one of the others."""
  scaling, said = config.rope_scaling, {'rope_theta': config.rope_base, 'rope_type': 'default'}
  if scaling is not None:
    said |= {'rope_type': scaling.kind, 'factor': scaling.factor}
    if scaling.kind in _WITH_ORIGINAL:
      said[_ORIGINAL] = scaling.original_max_positions or config.max_positions
    for ours, (theirs, kinds) in _NUMBERS.items():
      if scaling.kind in kinds and dataclasses.asdict(scaling)[ours] is not None:
        said[theirs] = dataclasses.asdict(scaling)[ours]
  if not by_kind:
    return {'rope_parameters': said}
  local = {'rope_theta': config.local_rope_base or config.rope_base, 'rope_type': 'default'}
  return {'rope_parameters': {'full_attention': said, 'sliding_attention': local}}
