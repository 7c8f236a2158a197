"""BART, DPR, RAG and sentence-transformers against transformers' own classes."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

import torch

from ralm_jax.interop import huggingface
from ralm_jax.models import fid
from ralm_jax.models.bart import Bart
from ralm_jax.models.dual_encoder import DualEncoder
from tests.interop import huggingface_folders as folders

TOLERANCE = dict(atol=1e-4, rtol=1e-4)


def _reader_logits(peer, tokens, mask, targets):
  with torch.no_grad():
    return peer(
      input_ids=folders.long(tokens),
      attention_mask=folders.long(mask),
      decoder_input_ids=folders.long(targets),
    ).logits.numpy()


def _equal(first, second):
  return jax.tree.structure(first) == jax.tree.structure(second) and all(
    jax.tree.leaves(jax.tree.map(np.array_equal, first, second))
  )


@pytest.mark.parametrize('changes', [{}, {'scale_embedding': True, 'activation_function': 'relu'}])
def test_bart_logits(changes, tmp_path):
  peer = folders.bart(**changes)
  # transformers 5 keeps it apart from config.json.
  peer.generation_config.forced_bos_token_id = 0 if changes else None
  peer.save_pretrained(tmp_path)
  config, params = huggingface.load_bart(tmp_path)
  assert config.scale_embedding == bool(changes)
  assert config.forced_first_id == (0 if changes else None)
  assert config.forced_last_id == 2
  tokens, mask = folders.batch()
  targets, _ = folders.batch(length=5)
  actual = Bart(config).apply({'params': params}, tokens, mask, targets)
  np.testing.assert_allclose(actual, _reader_logits(peer, tokens, mask, targets), **TOLERANCE)


def test_bart_in_the_form_of_the_first_checkpoints(tmp_path):
  """Torch's old format, no `model.`, no bias, every copy of the embedding."""
  peer = folders.bart()
  peer.final_logits_bias.zero_()
  peer.save_pretrained(tmp_path)
  _, expected = huggingface.load_bart(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  state = {k: v.clone() for k, v in peer.model.state_dict().items()}
  assert 'encoder.embed_tokens.weight' in state
  torch.save(state, tmp_path / 'pytorch_model.bin', _use_new_zipfile_serialization=False)
  _, params = huggingface.load_bart(tmp_path)
  assert _equal(params, expected)


@pytest.mark.parametrize(
  'field, value',
  [('normalize_before', True), ('decoder_attention_heads', 4), ('tie_word_embeddings', False)],
)
def test_a_relative_of_bart_is_refused(field, value, tmp_path):
  folders.bart().save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  with pytest.raises(ValueError, match=r'config\.json.*a BART has'):
    huggingface.load_bart(tmp_path)


@pytest.mark.parametrize('kind', ['Question', 'Context'])
@pytest.mark.parametrize('projection', [0, 6])
def test_dpr_embeddings(kind, projection, tmp_path):
  peer = folders.dpr(kind, projection_dim=projection)
  peer.save_pretrained(tmp_path)
  config, params = huggingface.load_dpr(tmp_path)
  tokens, mask = folders.batch()
  with torch.no_grad():
    expected = peer(folders.long(tokens), folders.long(mask)).pooler_output
  encoder = DualEncoder(config, pooling='cls')
  assert encoder.embedding_dim == (projection or 16)
  actual = encoder.apply({'params': params}, tokens, mask, method='encode_queries')
  np.testing.assert_allclose(actual, expected, **TOLERANCE)


@pytest.mark.parametrize('pooling', ['mean_tokens', 'cls_token'])
@pytest.mark.parametrize('normalize', [False, True])
def test_sentence_transformer_embeddings(pooling, normalize, tmp_path):
  peer = folders.sentence_transformer(tmp_path, pooling, normalize)
  part = huggingface.open_sentence_transformer(tmp_path)
  tokens, mask = folders.batch()
  with torch.no_grad():
    hidden = peer(folders.long(tokens), folders.long(mask)).last_hidden_state
  weights = torch.tensor(mask)[..., None].float()
  pooled = hidden[:, 0]
  if pooling == 'mean_tokens':
    pooled = (hidden * weights).sum(1) / weights.sum(1)
  if normalize:
    pooled = torch.nn.functional.normalize(pooled, dim=1)
  encoder = DualEncoder(part.config, pooling=part.pooling, normalize=part.normalize)
  actual = encoder.apply({'params': part.read()}, tokens, mask, method='encode_passages')
  np.testing.assert_allclose(actual, pooled, **TOLERANCE)


def test_modules_that_we_do_not_have(tmp_path):
  folders.sentence_transformer(tmp_path, 'max_tokens')
  with pytest.raises(ValueError, match=r"1_Pooling.config.json: pooling \['max_tokens"):
    huggingface.open_sentence_transformer(tmp_path)
  folders.sentence_transformer(tmp_path, modules=['Transformer', 'Pooling', 'Dense'])
  with pytest.raises(ValueError, match=r"modules.json: module '.*Dense'"):
    huggingface.open_sentence_transformer(tmp_path)


@pytest.mark.parametrize('kind, generator', [('Token', folders.bart), ('Sequence', folders.t5)])
def test_rag(kind, generator, tmp_path):
  peer = folders.rag(kind, generator())
  peer.save_pretrained(tmp_path)
  loaded = huggingface.open_rag(tmp_path)
  assert loaded.marginalization == kind.lower()
  assert loaded.n_passages == 2 and 'passage_encoder' not in loaded.parts
  tokens, mask = folders.batch()
  targets, _ = folders.batch(length=5)
  reader = loaded.parts['reader']
  actual = fid.make_reader(reader.config).apply(
    {'params': reader.read()}, tokens[:, None], mask[:, None], targets
  )
  np.testing.assert_allclose(
    actual, _reader_logits(peer.rag.generator, tokens, mask, targets), **TOLERANCE
  )
  with torch.no_grad():
    expected = peer.rag.question_encoder(folders.long(tokens), folders.long(mask)).pooler_output
  tower = loaded.parts['query_encoder']
  encoder = DualEncoder(tower.config, pooling='cls')
  actual = encoder.apply({'params': tower.read()}, tokens, mask, method='encode_queries')
  np.testing.assert_allclose(actual, expected, **TOLERANCE)


def test_rag_with_a_context_encoder(tmp_path):
  peer = folders.rag()
  context = folders.dpr('Context', seed=1)
  peer.set_context_encoder_for_training(context)
  peer.save_pretrained(tmp_path / 'rag')
  context.save_pretrained(tmp_path / 'context')
  _, expected = huggingface.load_dpr(tmp_path / 'context')
  loaded = huggingface.open_rag(tmp_path / 'rag')
  assert _equal(loaded.parts['passage_encoder'].read(), expected)
  assert not _equal(loaded.parts['query_encoder'].read(), expected)


def test_old_names_of_norms(tmp_path):
  peer = folders.bert()
  peer.save_pretrained(tmp_path)
  _, expected = huggingface.load_bert(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  rename = lambda name: name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
    'LayerNorm.bias', 'LayerNorm.beta'
  )
  torch.save(
    {'bert.' + rename(k): v for k, v in peer.state_dict().items()}, tmp_path / 'pytorch_model.bin'
  )
  assert _equal(huggingface.load_bert(tmp_path)[1], expected)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('as_torch', [False, True])
def test_half_precision_files(dtype, as_torch, tmp_path):
  peer = folders.bert().to(getattr(torch, dtype))
  peer.save_pretrained(tmp_path)
  if as_torch:
    (tmp_path / 'model.safetensors').unlink()
    torch.save(peer.state_dict(), tmp_path / 'pytorch_model.bin')
  _, params = huggingface.load_bert(tmp_path)
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'],
    peer.embeddings.word_embeddings.weight.detach().float().numpy(),
  )
