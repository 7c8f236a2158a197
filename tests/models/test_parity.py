"""T5, FiD and BERT against Hugging Face transformers on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.interop import huggingface
from ralm_jax.models import decoder_stack, t5
from ralm_jax.models.bert import Bert
from ralm_jax.models.dual_encoder import DualEncoder
from ralm_jax.models.fid import FusionInDecoder

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

T5_SIZES = dict(
  vocab_size=97,
  d_model=32,
  d_kv=8,
  d_ff=48,
  num_layers=3,
  num_decoder_layers=2,
  num_heads=4,
  decoder_start_token_id=0,
  dropout_rate=0.0,
)


def _t5_peer(version: str):
  torch.manual_seed(0)
  if version == '1.0':
    config = transformers.T5Config(**T5_SIZES, feed_forward_proj='relu')
    return transformers.T5ForConditionalGeneration(config).eval()
  config = transformers.T5Config(
    **T5_SIZES, feed_forward_proj='gated-gelu', tie_word_embeddings=False
  )
  model = transformers.T5ForConditionalGeneration(config).eval()
  # transformers 5 ties every T5 head; version 1.1 has one of its own.
  model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * 0.3)
  return model


def _save(model, directory, as_torch=False):
  model.config.save_pretrained(directory)
  state = {k: v.detach().clone() for k, v in model.state_dict().items()}
  if as_torch:
    torch.save(state, directory / 'pytorch_model.bin')
  else:
    from safetensors.torch import save_file

    save_file(state, str(directory / 'model.safetensors'))


def _inputs(n_passages=3):
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 97, (2, n_passages, 11)).astype(np.int32)
  lengths = rng.integers(4, 12, (2, n_passages))
  mask = np.arange(11) < lengths[..., None]
  tokens = np.where(mask, tokens, 0)
  targets = rng.integers(3, 97, (2, 6)).astype(np.int32)
  return tokens, mask, targets


@pytest.mark.parametrize('version', ['1.0', '1.1'])
@pytest.mark.parametrize('scan', [False, True])
def test_t5_logits(version, scan, tmp_path):
  peer = _t5_peer(version)
  _save(peer, tmp_path, as_torch=scan)
  config, params = huggingface.load_t5(tmp_path)
  assert config.logits_via_embedding == (version == '1.0')
  tokens, mask, targets = _inputs(1)
  tokens, mask = tokens[:, 0], mask[:, 0]
  decoder_inputs = np.asarray(decoder_stack.shift_right(jnp.asarray(targets)))
  with torch.no_grad():
    expected = peer(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      decoder_input_ids=torch.tensor(decoder_inputs, dtype=torch.long),
    ).logits.numpy()
  if scan:
    config = dataclasses.replace(config, scan_layers=True)
    for stack in ('encoder', 'decoder'):
      depth = sum(name.startswith('layers_') for name in params[stack])
      rows = [params[stack].pop(f'layers_{i}') for i in range(depth)]
      params[stack]['layers'] = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  actual = t5.T5(config).apply({'params': params}, tokens, mask, decoder_inputs)
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


class _TorchFiD:
  """FiD with the peer's own encoder and decoder: encode apart, concatenate."""

  def __init__(self, model):
    self.model = model

  def logits(self, tokens, mask, decoder_inputs):
    batch, n, length = tokens.shape
    hidden = self.model.encoder(
      input_ids=tokens.view(batch * n, length), attention_mask=mask.view(batch * n, length)
    ).last_hidden_state
    from transformers.modeling_outputs import BaseModelOutput

    return self.model(
      encoder_outputs=BaseModelOutput(last_hidden_state=hidden.view(batch, n * length, -1)),
      attention_mask=mask.view(batch, n * length),
      decoder_input_ids=decoder_inputs,
    ).logits


@pytest.mark.parametrize('version', ['1.0', '1.1'])
def test_fid_logits_and_gradients(version, tmp_path):
  peer = _t5_peer(version)
  _save(peer, tmp_path)
  config, params = huggingface.load_t5(tmp_path)
  tokens, mask, targets = _inputs()
  decoder_inputs = np.asarray(decoder_stack.shift_right(jnp.asarray(targets)))
  long = lambda x: torch.tensor(x, dtype=torch.long)
  logits = _TorchFiD(peer).logits(long(tokens), long(mask), long(decoder_inputs))
  loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 97), long(targets).reshape(-1))
  loss.backward()

  reader = FusionInDecoder(config)

  def loss_fn(params):
    logits = reader.apply({'params': params}, tokens, mask, decoder_inputs)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], -1)
    return -chosen.mean(), logits

  (actual_loss, actual), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  np.testing.assert_allclose(actual, logits.detach().numpy(), atol=1e-4, rtol=1e-4)
  np.testing.assert_allclose(actual_loss, loss.item(), atol=1e-5)

  # The peer's gradients, put through the loader, stand in our tree.
  for p in peer.parameters():
    p.data = p.grad if p.grad is not None else torch.zeros_like(p)
  (tmp_path / 'grads').mkdir()
  _save(peer, tmp_path / 'grads')
  _, expected = huggingface.load_t5(tmp_path / 'grads')
  flat_expected = jax.tree_util.tree_leaves_with_path(expected)
  flat_actual = dict(jax.tree_util.tree_leaves_with_path(grads))
  assert len(flat_expected) == len(flat_actual)
  for path, value in flat_expected:
    np.testing.assert_allclose(flat_actual[path], value, atol=1e-4, rtol=1e-3, err_msg=str(path))


def test_fid_of_one_passage_is_t5(tmp_path):
  _save(_t5_peer('1.1'), tmp_path)
  config, params = huggingface.load_t5(tmp_path)
  tokens, mask, targets = _inputs(1)
  fused = FusionInDecoder(config).apply({'params': params}, tokens, mask, targets)
  plain = t5.T5(config).apply({'params': params}, tokens[:, 0], mask[:, 0], targets)
  np.testing.assert_allclose(fused, plain, atol=1e-6)


def test_decode_each_is_one_passage_at_a_time(tmp_path):
  _save(_t5_peer('1.1'), tmp_path)
  config, params = huggingface.load_t5(tmp_path)
  tokens, mask, targets = _inputs()
  reader, variables = FusionInDecoder(config), {'params': params}
  encoded = reader.apply(variables, tokens, mask, method='encode_passages')
  each = reader.apply(variables, encoded, mask, targets, method='decode_each')
  for k in range(3):
    alone = reader.apply(variables, tokens[:, k : k + 1], mask[:, k : k + 1], targets)
    np.testing.assert_allclose(each[:, k], alone, atol=1e-5)


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_bert_and_dual_encoder(pooling, tmp_path):
  torch.manual_seed(0)
  peer = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=97,
      hidden_size=32,
      num_hidden_layers=3,
      num_attention_heads=4,
      intermediate_size=64,
      max_position_embeddings=40,
    )
  ).eval()
  peer.save_pretrained(tmp_path)
  config, params = huggingface.load_bert(tmp_path)
  tokens, mask, _ = _inputs(1)
  tokens, mask = tokens[:, 0], mask[:, 0]
  with torch.no_grad():
    hidden = peer(
      torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
    ).last_hidden_state.numpy()
  actual = Bert(config).apply({'params': params}, tokens, mask)
  np.testing.assert_allclose(np.asarray(actual)[mask], hidden[mask], atol=1e-4, rtol=1e-4)
  if pooling == 'mean':
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
  else:
    expected = hidden[:, 0]
  embeddings = DualEncoder(config, pooling=pooling).apply(
    {'params': params}, tokens, mask, method='encode_queries'
  )
  np.testing.assert_allclose(embeddings, expected, atol=1e-4, rtol=1e-4)


def test_atlas_layer_norm_is_the_uncentred_second_moment():
  x = np.random.default_rng(0).normal(1.0, 2.0, (3, 16)).astype(np.float32)
  from ralm_jax.models import layers

  norm = layers.LayerNorm(epsilon=1e-12, second_moment=True)
  variables = norm.init(jax.random.key(0), x)
  expected = (x - x.mean(-1, keepdims=True)) / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
  np.testing.assert_allclose(norm.apply(variables, x), expected, rtol=1e-5)
