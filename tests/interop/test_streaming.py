"""Checkpoints written leaf by leaf, and the memory that takes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from ralm_jax.checkpoints import store as checkpoints
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.text import vocabularies
from ralm_jax.interop import huggingface_configs, streaming, tensor_maps
from ralm_jax.interop.files import safetensors_file
from ralm_jax.interop.files.tensor_source import TensorInfo
from ralm_jax.interop.run_source import RunSource
from ralm_jax.interop.streaming import LazyParameter
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

MB = 1 << 20


def _lazy(array, rows=False):

  def pieces():
    if rows:
      yield from (((i,), row) for i, row in enumerate(array))
    else:
      yield (), array

  return LazyParameter(array.shape, array.dtype, pieces)


def _arrays():
  rng = np.random.default_rng(0)
  return {
    'embedding': rng.standard_normal((64, 48), np.float32),
    'stack': rng.standard_normal((3, 8, 6), np.float32),
    'scale': rng.standard_normal(48, np.float32),
  }


def _save(directory, arrays):
  streaming.save(
    directory,
    {
      'reader': {
        'embedding': _lazy(arrays['embedding']),
        'layers': {'kernel': _lazy(arrays['stack'], rows=True)},
        'scale': _lazy(arrays['scale']),
      }
    },
    {'converted_from': ['there']},
  )


def test_it_is_a_checkpoint_as_any_other(tmp_path):
  arrays = _arrays()
  _save(tmp_path, arrays)
  mesh = jax.make_mesh((2, 4), ('data', 'model'))
  place = lambda array, *axes: jax.ShapeDtypeStruct(
    array.shape, array.dtype, sharding=jax.NamedSharding(mesh, jax.P(*axes))
  )
  store = Checkpoints(tmp_path, read_only=True)
  restored = store.restore_params(
    0,
    {
      'reader': {
        'embedding': place(arrays['embedding'], 'model'),
        'layers': {'kernel': place(arrays['stack'], None, 'data')},
        'scale': place(arrays['scale']),
      }
    },
  )['reader']
  assert store.metadata(0) == {'converted_from': ['there']}
  store.close()
  np.testing.assert_array_equal(restored['embedding'], arrays['embedding'])
  np.testing.assert_array_equal(restored['layers']['kernel'], arrays['stack'])
  np.testing.assert_array_equal(restored['scale'], arrays['scale'])
  assert restored['embedding'].addressable_shards[0].data.shape == (16, 48)


def test_run_source_reads_it_in_parts(tmp_path):
  arrays = _arrays()
  _save(tmp_path, arrays)
  source = RunSource(tmp_path)
  assert sorted(source) == ['reader/embedding', 'reader/layers/kernel', 'reader/scale']
  assert source.info('reader/layers/kernel') == TensorInfo((3, 8, 6), np.dtype('float32'))
  np.testing.assert_array_equal(source.part('reader/layers/kernel', 0, 2), arrays['stack'][2])
  np.testing.assert_array_equal(source.part('reader/layers/kernel', 1, 3), arrays['stack'][:, 3])
  np.testing.assert_array_equal(source['reader/scale'], arrays['scale'])
  assert 'reader/kernel' not in source


def test_a_parameter_that_cannot_be_read(tmp_path):

  def pieces():
    raise ValueError('the file is truncated')
    yield  # pylint: disable=unreachable

  with pytest.raises(ValueError, match='the file is truncated'):
    streaming.save(
      tmp_path,
      {
        'whole': _lazy(np.ones(3, np.float32)),
        'torn': LazyParameter((3,), np.dtype('float32'), pieces),
      },
      {},
    )
  with pytest.raises(FileNotFoundError):
    checkpoints.find(tmp_path)


def _write_random(folder, raw, entries):
  """A folder of random weights, written without holding them."""
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(raw))
  rng = np.random.default_rng(0)
  infos = {e.name: TensorInfo(e.foreign_shape, np.dtype('float32')) for e in entries}
  safetensors_file.write(
    str(folder / 'model.safetensors'),
    infos,
    (rng.standard_normal(info.shape, np.float32) for info in infos.values()),
    {'format': 'pt'},
  )
  return sum(info.nbytes for info in infos.values())


_MEASURE = """
import resource, sys
from ralm_jax.commands import convert
from ralm_jax.interop import conversion_writers, recognition, run_source, streaming
import jax
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
convert.main(sys.argv[1:])
print('GREW', peak() - before)
"""


def _growth(*arguments):
  """Bytes that the peak of a process grows by when it converts."""
  result = subprocess.run(
    [sys.executable, '-c', _MEASURE, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
  )
  assert result.returncode == 0, result.stderr
  return int(result.stdout.split('GREW ')[1])


@pytest.mark.slow
def test_memory_is_that_of_the_largest_tensor(shared_data, tmp_path):
  config = T5Config(
    vocab_size=32128,
    emb_dim=512,
    num_heads=8,
    head_dim=64,
    mlp_dim=4096,
    num_encoder_layers=16,
    num_decoder_layers=16,
  )
  size = _write_random(
    tmp_path / 't5', huggingface_configs.t5_json(config), tensor_maps.t5_entries(config)
  )
  encoder = BertConfig(emb_dim=128, num_heads=2, num_layers=2, mlp_dim=512)
  _write_random(
    tmp_path / 'bert', huggingface_configs.bert_json(encoder), tensor_maps.bert_entries(encoder)
  )
  tokenizers = pathlib.Path(shared_data) / 'tokenizers'
  reader = next((tokenizers / 't5').glob('*.model'))
  retriever = tokenizers / 'bert-base-uncased' / 'vocab.txt'
  vocabularies.load_vocabulary(reader)
  assert size > 1000 * MB
  flags = ['--reader_vocabulary', reader, '--retriever_vocabulary', retriever]
  grown = {
    'run': _growth(
      '--from',
      tmp_path / 't5',
      tmp_path / 'bert',
      '--to',
      tmp_path / 'run',
      '--scan_layers',
      *flags,
    ),
    'huggingface': _growth(
      '--from', tmp_path / 'run', '--to', tmp_path / 'out', '--to_format', 'huggingface'
    ),
  }
  print({name: value // MB for name, value in grown.items()}, size // MB)
  # The largest tensor has 63 MB; Orbax and its threads keep some more.
  assert max(grown.values()) < 400 * MB, grown
  assert (tmp_path / 'out' / 'reader' / 'model.safetensors').stat().st_size > size
