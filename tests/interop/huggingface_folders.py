"""Tiny random checkpoints, written by the classes of transformers themselves."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 64


def randomize(model: Any, seed: int = 0) -> Any:
  """Gives every parameter values that matter; fresh norms are all ones."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator) * 0.2
      parameter.add_(noise)
  return model.eval()


def t5(**changes: Any) -> Any:
  """T5 1.1 with a head of its own; `tie_word_embeddings=True` for a tied one."""
  torch.manual_seed(0)
  config = transformers.T5Config(
    **{
      **dict(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
      ),
      **changes,
    }
  )
  model = transformers.T5ForConditionalGeneration(config)
  if not config.scale_decoder_outputs:
    # transformers 5 ties every head that it makes itself.
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
    model.all_tied_weights_keys.pop('lm_head.weight')
  return randomize(model)


def bart(**changes: Any) -> Any:
  torch.manual_seed(0)
  model = transformers.BartForConditionalGeneration(
    transformers.BartConfig(
      **{
        **dict(
          vocab_size=VOCABULARY,
          d_model=16,
          encoder_layers=2,
          decoder_layers=3,
          encoder_attention_heads=2,
          decoder_attention_heads=2,
          encoder_ffn_dim=24,
          decoder_ffn_dim=20,
          max_position_embeddings=32,
        ),
        **changes,
      }
    )
  )
  randomize(model)
  # A buffer, zero in every released checkpoint; here it must show.
  model.final_logits_bias += torch.linspace(-1, 1, model.config.vocab_size)[None]
  return model


_BERT = dict(
  vocab_size=VOCABULARY,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=32,
)


def bert(seed: int = 0, **changes: Any) -> Any:
  torch.manual_seed(seed)
  return randomize(transformers.BertModel(transformers.BertConfig(**{**_BERT, **changes})), seed)


def dpr(kind: str = 'Question', seed: int = 0, **changes: Any) -> Any:
  torch.manual_seed(seed)
  return randomize(
    getattr(transformers, f'DPR{kind}Encoder')(transformers.DPRConfig(**{**_BERT, **changes})), seed
  )


_DECODER = dict(
  vocab_size=VOCABULARY,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=32,
  max_position_embeddings=96,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)
# Classes of transformers with what is special about each.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
  'llama': ('Llama', {'rms_norm_eps': 1e-5}),
  'llama3': (
    'Llama',
    {
      'head_dim': 16,
      'rope_parameters': {
        **{'rope_type': 'llama3', 'rope_theta': 1000.0, 'factor': 8.0, 'low_freq_factor': 1.0},
        **{'high_freq_factor': 4.0, 'original_max_position_embeddings': 32},
      },
    },
  ),
  'smollm': ('Llama', {'tie_word_embeddings': True, 'rope_parameters': {'rope_theta': 5000.0}}),
  'mistral': ('Mistral', {'sliding_window': 5, 'head_dim': 8}),
  'qwen2': ('Qwen2', {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 1}),
  'qwen3': ('Qwen3', {'head_dim': 8, 'tie_word_embeddings': True}),
  'gemma3': (
    'Gemma3',
    {'head_dim': 8, 'sliding_window': 4, 'sliding_window_pattern': 2, 'query_pre_attn_scalar': 6},
  ),
}


def decoder(family: str, **changes: Any) -> Any:
  """A decoder-only model of one of `DECODERS`, with changes to its configuration."""
  torch.manual_seed(0)
  name, fields = DECODERS[family]
  config_class = getattr(transformers, f'{name}TextConfig' if name == 'Gemma3' else f'{name}Config')
  config = config_class(**{**_DECODER, **fields, **changes})
  return randomize(getattr(transformers, f'{name}ForCausalLM')(config))


def decoder_leaves(peer: Any) -> dict[str, np.ndarray]:
  """Our tree of a decoder-only model, by hand, its names joined."""
  state = {name: value.detach().numpy() for name, value in peer.state_dict().items()}
  gemma = peer.config.model_type == 'gemma3_text'
  norm = lambda name: state[f'{name}.weight'] + gemma * np.float32(1)
  tree = {
    'token_embedder/embedding': state['model.embed_tokens.weight'],
    'decoder/decoder_norm/scale': norm('model.norm'),
  }
  if not peer.config.tie_word_embeddings:
    tree['logits_dense/kernel'] = state['lm_head.weight'].T
  for i in range(peer.config.num_hidden_layers):
    ours, theirs = f'decoder/layers_{i}', f'model.layers.{i}'
    for name, of in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o')):
      projection = f'{theirs}.self_attn.{of}_proj'
      tree[f'{ours}/attention/{name}/kernel'] = state[f'{projection}.weight'].T
      if f'{projection}.bias' in state:
        tree[f'{ours}/attention/{name}/bias'] = state[f'{projection}.bias']
    for name, of in (('wi_0', 'gate'), ('wi_1', 'up'), ('wo', 'down')):
      tree[f'{ours}/mlp/{name}/kernel'] = state[f'{theirs}.mlp.{of}_proj.weight'].T
    norms = {'pre_attention_norm': 'input_layernorm', 'pre_mlp_norm': 'post_attention_layernorm'}
    if gemma:
      norms |= {
        'post_attention_norm': 'post_attention_layernorm',
        'pre_mlp_norm': 'pre_feedforward_layernorm',
        'post_mlp_norm': 'post_feedforward_layernorm',
      }
    if f'{theirs}.self_attn.q_norm.weight' in state:
      norms |= {f'attention/{of}_norm': f'self_attn.{of[0]}_norm' for of in ('query', 'key')}
    tree |= {f'{ours}/{name}/scale': norm(f'{theirs}.{of}') for name, of in norms.items()}
  return tree


def rag(kind: str = 'Token', generator: Any = None, **changes: Any) -> Any:
  """RagTokenForGeneration or RagSequenceForGeneration without a retriever."""
  generator = bart() if generator is None else generator
  encoder = dpr()
  config = transformers.RagConfig.from_question_encoder_generator_configs(
    encoder.config, generator.config, n_docs=2, **changes
  )
  return getattr(transformers, f'Rag{kind}ForGeneration')(
    config=config, question_encoder=encoder, generator=generator
  ).eval()


def sentence_transformer(
  folder: pathlib.Path,
  pooling: str = 'mean_tokens',
  normalize: bool = True,
  modules: list[str] | None = None,
) -> Any:
  """Writes a folder in the layout of sentence-transformers; returns the BERT."""
  model = bert()
  model.save_pretrained(folder)
  kinds = modules or (['Transformer', 'Pooling'] + (['Normalize'] if normalize else []))
  (folder / 'modules.json').write_text(
    json.dumps(
      [
        {
          'idx': i,
          'name': str(i),
          'type': f'sentence_transformers.models.{kind}',
          'path': '' if kind == 'Transformer' else f'{i}_{kind}',
        }
        for i, kind in enumerate(kinds)
      ]
    )
  )
  (folder / '1_Pooling').mkdir(exist_ok=True)
  (folder / '1_Pooling' / 'config.json').write_text(
    json.dumps(
      {
        'word_embedding_dimension': 16,
        **{
          f'pooling_mode_{mode}': mode == pooling
          for mode in ('cls_token', 'mean_tokens', 'max_tokens', 'mean_sqrt_len_tokens')
        },
      }
    )
  )
  return model


def batch(rows: int = 2, length: int = 9, low: int = 3) -> tuple[np.ndarray, np.ndarray]:
  """Random ids with a mask of differing lengths; padding has id 1."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(low, VOCABULARY, (rows, length)).astype(np.int32)
  mask = np.arange(length) < rng.integers(4, length + 1, (rows, 1))
  return np.where(mask, tokens, 1), mask


def long(array: np.ndarray) -> Any:
  return torch.tensor(np.asarray(array), dtype=torch.long)
