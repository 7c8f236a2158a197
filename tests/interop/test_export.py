"""Folders that we write: transformers loads them, and they come back the same."""

import os

import flax.traverse_util
import jax
import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import safetensors.numpy
import torch

from ralm_jax.files import new_folder
from ralm_jax.interop import (
  huggingface,
  huggingface_configs,
  huggingface_export,
  initial_weights,
  recognition,
)
from ralm_jax.interop.conversion_writers import PartSource
from ralm_jax.interop.files import safetensors_file
from ralm_jax.interop.files.safetensors_file import SafetensorsFile
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.part import Part
from ralm_jax.models import fid
from ralm_jax.models.dual_encoder import DualEncoder
from ralm_jax.models.t5 import T5Config
from tests.interop import huggingface_folders as folders


def _assert_same_bytes(first, second):
  """Trees of equal structure and identical bytes."""
  assert jax.tree.structure(first) == jax.tree.structure(second)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32)), first, second
  )


class Params(TensorSource):
  """Our parameters in memory."""

  description = 'the parameters'

  def __init__(self, params):
    self._index = flax.traverse_util.flatten_dict(params, sep='/')

  def info(self, name):
    array = self._index[name]
    return TensorInfo(tuple(array.shape), np.dtype(array.dtype))

  def __getitem__(self, name):
    return np.asarray(self._index[name])


def _save(folder, config, params, kind, side='retriever', **options):
  """A part as `ralm convert` has one of our parameters, written."""
  source = Params(params)
  part = Part(
    kind,
    config,
    source,
    recognition.own_entries(source),
    pooling='cls' if side.endswith('encoder') else None,
  )
  raw, entries = huggingface_export.export_map(side, part)
  huggingface_export.write(folder, raw, entries, PartSource(part), **options)


def _scan(params):
  return params | {s: initial_weights.stack_layers(params[s]) for s in ('encoder', 'decoder')}


READERS = {
  't5_1.0': (lambda: folders.t5(feed_forward_proj='relu', tie_word_embeddings=True), 'T5', 't5'),
  't5_1.1': (folders.t5, 'T5', 't5'),
  'bart': (lambda: folders.bart(scale_embedding=True), 'Bart', 'bart'),
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('scan', [False, True])
def test_readers_there_and_back(name, scan, tmp_path):
  make, kind, short = READERS[name]
  make().save_pretrained(tmp_path / 'theirs')
  load = getattr(huggingface, f'load_{short}')
  config, params = load(tmp_path / 'theirs')
  _save(tmp_path / 'ours', config, _scan(params) if scan else params, short)
  again, params_again = load(tmp_path / 'ours')
  assert again == config
  assert config.__dict__.get('logits_via_embedding', True) == (name != 't5_1.1')
  _assert_same_bytes(params, params_again)

  peer = getattr(transformers, f'{kind}ForConditionalGeneration')
  peer, info = peer.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  tokens, mask = folders.batch()
  targets, _ = folders.batch(length=5)
  with torch.no_grad():
    expected = peer.eval()(
      input_ids=folders.long(tokens),
      attention_mask=folders.long(mask),
      decoder_input_ids=folders.long(targets),
    ).logits
  actual = fid.make_reader(config).apply(
    {'params': params}, tokens[:, None], mask[:, None], targets
  )
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)
  again = peer.generation_config
  assert again.decoder_start_token_id == config.decoder_start_id


@pytest.mark.parametrize(
  'kind, pooling', [('bert', 'mean'), ('query_encoder', 'cls'), ('passage_encoder', 'cls')]
)
def test_encoders_there_and_back(kind, pooling, tmp_path):
  if kind == 'bert':
    folders.bert().save_pretrained(tmp_path / 'theirs')
    load, architecture = huggingface.load_bert, 'BertModel'
  else:
    name = 'Question' if kind == 'query_encoder' else 'Context'
    folders.dpr(name, projection_dim=6).save_pretrained(tmp_path / 'theirs')
    load, architecture = huggingface.load_dpr, f'DPR{name}Encoder'
  config, params = load(tmp_path / 'theirs')
  _save(tmp_path / 'ours', config, initial_weights.stack_layers(params), 'bert', side=kind)
  again, params_again = load(tmp_path / 'ours')
  assert again == config
  _assert_same_bytes(params, params_again)
  peer = getattr(transformers, architecture).from_pretrained(tmp_path / 'ours')
  tokens, mask = folders.batch()
  with torch.no_grad():
    found = peer.eval()(folders.long(tokens), folders.long(mask))
  if kind == 'bert':
    weights = torch.tensor(mask)[..., None].float()
    expected = (found.last_hidden_state * weights).sum(1) / weights.sum(1)
  else:
    expected = found.pooler_output
  actual = DualEncoder(config, pooling=pooling).apply(
    {'params': params}, tokens, mask, method='encode_queries'
  )
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('tied', [False, True])
def test_outputs_are_scaled_where_the_head_is_tied(tied):
  """What a configuration leaves open, ours and theirs decide alike."""
  raw = huggingface_configs.t5_json(T5Config(logits_via_embedding=tied))
  assert transformers.T5Config(**raw).scale_decoder_outputs == tied


def test_shards_are_small_and_whole(tmp_path):
  folders.t5().save_pretrained(tmp_path / 'theirs')
  config, params = huggingface.load_t5(tmp_path / 'theirs')
  _save(tmp_path / 'ours', config, params, 't5', max_shard_bytes=5000)
  files = sorted((tmp_path / 'ours').glob('model-*-of-*.safetensors'))
  assert len(files) > 3
  assert all(file.stat().st_size < 5000 + 4000 for file in files)
  _assert_same_bytes(huggingface.load_t5(tmp_path / 'ours')[1], params)
  peer = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'ours')
  np.testing.assert_array_equal(
    peer.lm_head.weight.detach().numpy().T, params['logits_dense']['kernel']
  )


def test_what_hugging_face_does_not_have(tmp_path):
  folders.dpr(projection_dim=6).save_pretrained(tmp_path / 'dpr')
  config, params = huggingface.load_dpr(tmp_path / 'dpr')
  with pytest.raises(ValueError, match='write it as DPR'):
    huggingface_export.bert_map(config)
  config, params = huggingface.load_dpr(tmp_path / 'dpr', second_moment_layer_norm=True)
  with pytest.raises(ValueError, match='no Hugging Face class'):
    _save(tmp_path / 'out', config, params, 'bert', side='query_encoder')
  folders.t5().save_pretrained(tmp_path / 't5')
  config, params = huggingface.load_t5(tmp_path / 't5', mlp_activations=('silu', 'gelu'))
  with pytest.raises(ValueError, match='T5Config.mlp_activations .* has no name'):
    _save(tmp_path / 'out', config, params, 't5')
  assert not (tmp_path / 'out').exists()


def test_parameters_of_another_model(tmp_path):
  folders.t5().save_pretrained(tmp_path / 't5')
  config, params = huggingface.load_t5(tmp_path / 't5')
  del params['decoder']['layers_1']
  with pytest.raises(ValueError, match='no parameter decoder/layers_1/'):
    _save(tmp_path / 'out', config, params, 't5')
  config, params = huggingface.load_t5(tmp_path / 't5')
  params['encoder']['adapter'] = np.zeros(3, np.float32)
  with pytest.raises(ValueError, match='encoder/adapter has no place'):
    _save(tmp_path / 'out', config, params, 't5')
  params['token_embedder']['embedding'] = np.zeros((3, 16), np.float32)
  with pytest.raises(ValueError, match=r'has shape \(3, 16\), expected \(64, 16\)'):
    _save(tmp_path / 'out', config, params, 't5')


def test_safetensors_are_those_of_the_library(tmp_path):
  import ml_dtypes

  arrays = {
    'b': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a': np.arange(5, dtype=np.int64),
    'empty': np.zeros((0, 4), np.float16),
    'scalar': np.array(3, np.float32),
  }
  ours, theirs = str(tmp_path / 'ours'), str(tmp_path / 'theirs')
  safetensors_file.write(
    ours,
    {k: TensorInfo(v.shape, v.dtype) for k, v in arrays.items()},
    arrays.values(),
    {'format': 'pt'},
  )
  safetensors.numpy.save_file(arrays, theirs)
  for name, value in safetensors.numpy.load_file(ours).items():
    np.testing.assert_array_equal(value, arrays[name])
    assert value.dtype == arrays[name].dtype
  file = SafetensorsFile(theirs)
  for name, value in arrays.items():
    np.testing.assert_array_equal(file.read(name), value)
    assert file.read(name).dtype == value.dtype
  half = {'x': torch.arange(4).bfloat16()}
  from safetensors import torch as torch_files

  torch_files.save_file(half, theirs)
  value = SafetensorsFile(theirs).read('x')
  assert value.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(value.astype(np.float32), np.arange(4))


@pytest.mark.parametrize(
  'damage',
  [
    lambda c: b'',
    lambda c: c[:5],
    lambda c: c[:40],
    lambda c: c[:-1],
    lambda c: c + b'x',
    lambda c: b'\xff' * 8 + c[8:],
    lambda c: c[:8] + b'[' + c[9:],
    lambda c: c.replace(b'"shape":[3]', b'"shape":[2]'),
  ],
)
def test_damaged_safetensors(damage, tmp_path):
  path = str(tmp_path / 'x.safetensors')
  safetensors_file.write(
    path, {'x': TensorInfo((3,), np.dtype('float32'))}, [np.zeros(3, np.float32)]
  )
  content = damage(open(path, 'rb').read())
  with open(path, 'wb') as file:
    file.write(content)
  with pytest.raises(ValueError, match='truncated or not a safetensors file'):
    SafetensorsFile(path)


def test_a_folder_is_whole_or_not_there(tmp_path):
  target = tmp_path / 'out'
  with pytest.raises(RuntimeError), new_folder.creating(target) as aside:
    (tmp_path / 'seen').write_text(aside)
    raise RuntimeError
  assert os.listdir(tmp_path) == ['seen']
  # What a process that is gone left behind goes; a living one's stays.
  gone, living = tmp_path / 'out.unfinished-999999999', tmp_path / 'out.unfinished-1'
  for folder in (gone, living):
    folder.mkdir()
  with new_folder.creating(target) as aside:
    with open(os.path.join(aside, 'file'), 'w', encoding='utf-8') as file:
      file.write('content')
    assert not target.exists() and not gone.exists() and living.exists()
  assert (target / 'file').read_text() == 'content'
  with pytest.raises(FileExistsError, match='exists already'):
    with new_folder.creating(target):
      pass
