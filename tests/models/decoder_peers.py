"""Tiny models of transformers for each family, and their weights in our tree."""

import dataclasses

import jax
import numpy as np

from ralm_jax.models.decoder_config import DecoderConfig, RopeScaling

VOCABULARY = 61
_SIZES = dict(
  vocab_size=VOCABULARY,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
)
_OURS = dict(
  vocab_size=VOCABULARY,
  emb_dim=32,
  mlp_dim=48,
  num_decoder_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_positions=64,
  norm_epsilon=1e-6,
  bos_id=1,
)
_ROPE = dict(rope_theta=10_000.0)


@dataclasses.dataclass(frozen=True)
class Family:
  """A class of transformers and what its tiny model is made of, theirs and ours."""

  name: str
  theirs: dict
  ours: dict

  def config(self, **changes) -> DecoderConfig:
    return DecoderConfig(**_OURS | self.ours | changes)

  def peer(self, seed: int = 0):
    """Random weights, large enough that nothing vanishes; norms away from 1."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f'{self.name}Config')(**_SIZES | self.theirs)
    model = getattr(transformers, f'{self.name.removesuffix("Text")}ForCausalLM')(config).eval()
    with torch.no_grad():
      for name, parameter in model.named_parameters():
        if 'norm' in name:
          parameter.add_(torch.randn_like(parameter) * 0.3)
        else:
          parameter.copy_(torch.randn_like(parameter) * (0.5 if 'embed' in name else 0.2))
    return model


def _scaled(kind: str, theirs: dict, ours: dict) -> Family:
  rope = _ROPE | dict(rope_type=kind) | theirs
  return Family(
    'Llama',
    dict(rope_parameters=rope, tie_word_embeddings=True),
    dict(logits_via_embedding=True, rope_scaling=RopeScaling(kind, **ours)),
  )


FAMILIES = {
  'llama': Family('Llama', {}, {}),
  'smollm2': Family(
    'Llama',
    dict(tie_word_embeddings=True, rope_parameters=dict(rope_theta=100_000.0, rope_type='default')),
    dict(logits_via_embedding=True, rope_base=100_000.0),
  ),
  'mistral': Family('Mistral', dict(sliding_window=5, head_dim=8), dict(window=5)),
  'qwen2': Family('Qwen2', dict(use_sliding_window=False), dict(attention_bias=True)),
  'qwen3': Family('Qwen3', dict(head_dim=16), dict(head_dim=16, query_key_norm=True)),
  'gemma3': Family(
    'Gemma3Text',
    dict(
      head_dim=16,
      num_hidden_layers=5,
      num_key_value_heads=1,
      sliding_window=5,
      query_pre_attn_scalar=24,
      layer_types=['sliding_attention', 'full_attention'] * 2 + ['sliding_attention'],
      rope_parameters={
        'sliding_attention': dict(rope_theta=10_000.0, rope_type='default'),
        'full_attention': dict(rope_theta=1e6, rope_type='linear', factor=8.0),
      },
    ),
    dict(
      head_dim=16,
      num_decoder_layers=5,
      num_kv_heads=1,
      mlp_activations=('gelu', 'linear'),
      window=5,
      layer_pattern=('local', 'global'),
      logits_via_embedding=True,
      query_key_norm=True,
      post_norms=True,
      scale_embedding=True,
      query_scale=24**-0.5,
      rope_base=1e6,
      local_rope_base=10_000.0,
      rope_scaling=RopeScaling('linear', 8.0),
    ),
  ),
  'linear': _scaled('linear', dict(factor=4.0), dict(factor=4.0)),
  'llama3': _scaled(
    'llama3',
    dict(
      factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    dict(factor=8.0, original_max_positions=16),
  ),
  'yarn': _scaled(
    'yarn',
    dict(factor=4.0, original_max_position_embeddings=16),
    dict(factor=4.0, original_max_positions=16),
  ),
  'dynamic': _scaled('dynamic', dict(factor=2.0), dict(factor=2.0)),
}

_NAMES = {
  'input_layernorm': 'pre_attention_norm',
  'self_attn.q_proj': 'attention/query',
  'self_attn.k_proj': 'attention/key',
  'self_attn.v_proj': 'attention/value',
  'self_attn.o_proj': 'attention/out',
  'self_attn.q_norm': 'attention/query_norm',
  'self_attn.k_norm': 'attention/key_norm',
  'post_attention_layernorm': 'pre_mlp_norm',
  'mlp.gate_proj': 'mlp/wi_0',
  'mlp.up_proj': 'mlp/wi_1',
  'mlp.down_proj': 'mlp/wo',
}
_GEMMA = {
  'post_attention_layernorm': 'post_attention_norm',
  'pre_feedforward_layernorm': 'pre_mlp_norm',
  'post_feedforward_layernorm': 'post_mlp_norm',
}


def params_of(state: dict, config: DecoderConfig, offset: float | None = None) -> dict:
  """Our tree of a state_dict, or of gradients under its names; `offset` of the norms' scales."""
  tree = _unscanned(state, config, offset)
  if config.scan_layers:
    decoder, pattern = tree['decoder'], len(config.layer_pattern) or 1
    depth = config.num_decoder_layers
    layers = [decoder.pop(f'layers_{i}') for i in range(depth)]
    whole = depth // pattern * pattern
    decoder['layers'] = {
      f'layer_{j}': jax.tree.map(lambda *x: np.stack(x), *layers[j:whole:pattern])
      for j in range(pattern)
    }
    decoder |= {f'remainder_{j}': layer for j, layer in enumerate(layers[whole:])}
  return tree


def _unscanned(state: dict, config: DecoderConfig, offset: float | None) -> dict:
  names = _NAMES | (_GEMMA if config.post_norms else {})
  if offset is None:
    offset = 1.0 if config.post_norms else 0.0
  tree: dict = {}

  def put(path: str, value: np.ndarray) -> None:
    *folders, leaf = path.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = value

  for name, tensor in state.items():
    value = tensor.detach().float().numpy()
    name = name.removeprefix('model.')
    if name == 'embed_tokens.weight':
      put('token_embedder/embedding', value)
    elif name == 'norm.weight':
      put('decoder/decoder_norm/scale', value + offset)
    elif name == 'lm_head.weight':
      if not config.logits_via_embedding:
        put('logits_dense/kernel', value.T)
    else:
      _, layer, rest = name.split('.', 2)
      stem, _, kind = rest.rpartition('.')
      path = f'decoder/layers_{layer}/{names[stem]}'
      if kind == 'bias':
        put(f'{path}/bias', value)
      elif 'norm' in path:
        put(f'{path}/scale', value + offset)
      else:
        put(f'{path}/kernel', value.T)
  return tree
