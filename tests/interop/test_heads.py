"""Tensors that one family fills from another, absent or contradicting; values that are none."""

import json

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from safetensors import numpy as files
import torch

from ralm_jax.interop import composing, conversion_report, initial_weights, recognition, targets
from tests.interop import huggingface_folders as folders, test_atlas, test_t5x


def _folder(path, model, state=(), drop=(), form='safetensors', **fields):
  """A saved model: other tensors, fields of its config.json, and another container."""
  model.save_pretrained(path)
  tensors = files.load_file(path / 'model.safetensors') | dict(state)
  tensors = {name: value for name, value in tensors.items() if name not in drop}
  (path / 'model.safetensors').unlink()
  if form == 'torch':
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path / 'pytorch_model.bin')
  else:
    files.save_file(tensors, path / 'model.safetensors')
  config = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(json.dumps(config | fields))
  return path


def _t5(path, form):
  """T5 1.1 as its authors have released it, whose head somebody lost."""
  lost = {'drop': ['lm_head.weight'], 'tie_word_embeddings': False}
  return _folder(path, folders.t5(), form=form, **lost)


def _t5x(path, form):
  params = test_t5x.as_t5x(test_t5x.random_params(test_t5x.CONFIG))
  del params['decoder']['logits_dense']
  writer = {'t5x legacy': test_t5x.write_legacy, 't5x native': test_t5x.write_native}[form]
  return writer(path, params)


def _atlas(path, form):
  state = test_atlas.state_of(test_atlas.reader_peer(), {'contriever': test_atlas.retriever_peer()})
  del state['reader.lm_head.weight']
  path.mkdir()
  return test_atlas.write(path / 'model.pth.tar', state)


@pytest.mark.parametrize(
  'form, make, head',
  [
    ('safetensors', _t5, 'lm_head.weight'),
    ('torch', _t5, 'lm_head.weight'),
    ('t5x legacy', _t5x, 'decoder/logits_dense/kernel'),
    ('t5x native', _t5x, 'decoder/logits_dense/kernel'),
    ('atlas', _atlas, 'reader.lm_head.weight'),
  ],
)
def test_a_lost_head_is_missing(form, make, head, tmp_path):
  """The embedding was taken for it, and "0 missing" said."""
  path = str(make(tmp_path / 'folder', form))
  heads = 4 if form == 'atlas' else None
  part = recognition.recognise(path, 'reader', heads).parts['reader']
  with pytest.raises(ValueError, match=f"no tensor '{head}'"):
    part.read()
  gathered = composing.gather([('reader', path)], heads)
  with pytest.raises(ValueError, match=f'Tensors are missing: {head} of .*reader/logits_dense'):
    targets.check(gathered, allow_missing=False, allow_unused=False)
  said = '\n'.join(conversion_report.report(gathered, 'run', every_tensor=False))
  assert f'missing: {head}' in said and ', 1 missing' in said


def _notes(path, side='reader'):
  return ' '.join(recognition.recognise(str(path), side).parts[side].notes)


def test_what_is_derived_is_said(tmp_path):
  """A tied head that is not there, one that contradicts its configuration, a bias of zeros."""
  tied = folders.t5(feed_forward_proj='relu', tie_word_embeddings=True)
  path = _folder(tmp_path / 'tied', tied, drop=['lm_head.weight'])
  assert 'lm_head.weight is not there: the head is shared.weight' in _notes(path)
  other = {'lm_head.weight': np.ones((folders.VOCABULARY, 16), np.float32)}
  path = _folder(tmp_path / 'differs', tied, other)
  assert 'lm_head.weight is another than shared.weight' in _notes(path)
  found = recognition.recognise(str(path)).parts['reader'].read()
  np.testing.assert_array_equal(found['logits_dense']['kernel'], 1)
  path = _folder(tmp_path / 'bart', folders.bart(), drop=['final_logits_bias'])
  assert 'final_logits_bias is not there: zeros' in _notes(path)


@pytest.mark.parametrize(
  'family, name',
  [
    ('t5', 'encoder.embed_tokens.weight'),
    ('t5', 'decoder.embed_tokens.weight'),
    ('bart', 'lm_head.weight'),
    ('bart', 'model.encoder.embed_tokens.weight'),
    ('bart', 'model.decoder.embed_tokens.weight'),
    ('bert', 'embeddings.projection.weight'),
    ('dpr', 'question_encoder.bert_model.encoder.extra.weight'),
  ],
)
def test_what_nobody_reads_is_an_error(family, name, tmp_path):
  """Copies that are none, and the unknown; from gin, too."""
  state = {name: np.ones((folders.VOCABULARY, 16), np.float32)}
  path = str(_folder(tmp_path / family, getattr(folders, family)(), state))
  reader = str(_folder(tmp_path / 'reader', folders.t5()))
  retriever = str(_folder(tmp_path / 'retriever', folders.bert()))
  side = 'reader' if family in ('t5', 'bart') else 'retriever'
  with pytest.raises(ValueError, match=f'Tensors are left over: {name} of {path}'):
    initial_weights.from_huggingface(**{'reader': reader, 'retriever': retriever, side: path})


@pytest.mark.parametrize('form', ['safetensors', 'torch'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value, form, tmp_path):
  model = folders.bert()
  name = 'encoder.layer.1.output.dense.weight'
  model.encoder.layer[1].output.dense.weight.data[3, 4:7] = value
  path = _folder(tmp_path / 'bert', model, form=form)
  with pytest.raises(ValueError, match=f"{path}: tensor '{name}' holds 3 of 384 values .* finite"):
    recognition.recognise(str(path)).parts['retriever'].read()


def test_half_precision_that_is_not_finite(tmp_path):
  params = test_t5x.as_t5x(test_t5x.random_params(test_t5x.CONFIG))
  params['token_embedder']['embedding'] = np.full((40, 12), np.nan, ml_dtypes.bfloat16)
  path = test_t5x.write_legacy(tmp_path / 'checkpoint_0', params)
  with pytest.raises(ValueError, match="'token_embedder/embedding' holds 480 of 480 values"):
    recognition.recognise(str(path)).parts['reader'].read()
