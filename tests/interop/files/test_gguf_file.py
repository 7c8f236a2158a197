"""GGUF files: every type, metadata, parts, and what is wrong with them."""

import struct

import numpy as np
import pytest

gguf = pytest.importorskip('gguf')

from ralm_jax.interop.files.gguf_file import GgufFile
from tests.interop import gguf_files

METADATA = {
  'x.count': 3, 'x.rate': 0.5, 'x.whether': True, 'x.names': ['Ġa', 'é', ''], 'x.ids': [3, 1],
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
  """A tensor of every type."""
  rng = np.random.default_rng(1)
  tensors = {name: rng.normal(size=(3, 512)).astype(np.float32) for name in gguf_files.TYPES}
  tensors['vector'] = np.arange(5, dtype=np.float32)
  made = tmp_path / 'tiny.gguf'
  gguf_files.write(made, 'llama', METADATA, tensors, dict(zip(gguf_files.TYPES, gguf_files.TYPES)))
  return made


def test_every_type_is_what_the_package_makes_of_it(path):
  found = GgufFile(path)
  assert found.types() == {name: 1 + (name == 'F32') for name in sorted(gguf_files.TYPES)}
  for tensor in gguf.GGUFReader(path).tensors:
    array = found[tensor.name]
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(array.astype(np.float32), expected)
    assert array.shape == found.info(tensor.name).shape == tuple(tensor.shape[::-1])
    assert array.dtype == found.info(tensor.name).dtype
    if tensor.name not in ('vector', 'Q4_K', 'Q5_K', 'Q6_K'):
      rng = np.random.default_rng(1)  # What was written, but for its precision.
      wanted = [rng.normal(size=(3, 512)) for _ in range(8)][gguf_files.TYPES.index(tensor.name)]
      np.testing.assert_allclose(array.astype(np.float32), wanted, atol=0.35)


def test_rows_are_dequantised_in_pieces(path, monkeypatch):
  whole = GgufFile(path)['Q4_K']
  monkeypatch.setattr('ralm_jax.interop.files.gguf_file._ROWS_AT_ONCE', 1)
  np.testing.assert_array_equal(GgufFile(path)['Q4_K'], whole)


def test_metadata_is_plain_values(path):
  assert GgufFile(path).metadata == {'general.architecture': 'llama', **METADATA}


def test_a_file_in_parts_is_one(path, tmp_path):
  whole = GgufFile(path)
  for number in (1, 2):
    mine = {name: whole[name].astype(np.float32) for name in list(whole)[number - 1 :: 2]}
    said = {'split.count': 2, 'split.no': number - 1} | (METADATA if number == 1 else {})
    gguf_files.write(tmp_path / f'of-{number:05}-of-00002.gguf', 'llama', said, mine)
  for number in (1, 2):
    joined = GgufFile(tmp_path / f'of-{number:05}-of-00002.gguf')
    assert set(joined) == set(whole) and joined.metadata.items() > METADATA.items()
    np.testing.assert_array_equal(joined['Q8_0'], whole['Q8_0'])
  (tmp_path / 'of-00001-of-00002.gguf').rename(tmp_path / 'alone.gguf')
  with pytest.raises(ValueError, match='alone.gguf is one of 2 parts, .* NAME-00001-of-00002'):
    GgufFile(tmp_path / 'alone.gguf')
  with pytest.raises(FileNotFoundError, match='of-00001-of-00002.gguf does not exist; .* 2 parts'):
    GgufFile(tmp_path / 'of-00002-of-00002.gguf')


def test_wherever_it_is_cut_it_says_so(path, tmp_path):
  content = path.read_bytes()
  cut = tmp_path / 'cut.gguf'
  start = content.index(b'x.names')
  in_tensors = (content.index(b'Q4_K') + 9, len(content) - 20)  # The last 12 bytes are padding.
  for length in (0, 3, 4, 7, 20, start + 3, start + 30, *in_tensors):
    cut.write_bytes(content[:length])
    with pytest.raises(ValueError, match='cut.gguf is (no GGUF file|cut short)'):
      GgufFile(cut)
  with pytest.raises(ValueError, match="cut short: tensor 'vector' ends at byte .*fetch it again"):
    GgufFile(cut)


@pytest.mark.parametrize(
  'at, value, message',
  [
    (0, b'ggjt', "is no GGUF file: it begins with b'ggjt'"),
    (4, struct.pack('<I', 1), 'of GGUF version 1, expected 2 or 3'),
    (4, struct.pack('>I', 3), 'is a big-endian GGUF file'),
    (16, struct.pack('<Q', 1 << 40), 'cut short or damaged|is damaged'),
    ('Q4_K', struct.pack('<IQQI', 2, 512, 3, 99), "tensor 'Q4_K' is of type number 99, which is"),
    ('Q4_K', struct.pack('<IQQI', 2, 512, 3, 26), "tensor 'Q4_K' is of type I32, which is not"),
    ('Q4_K', struct.pack('<IQQ', 2, 512, 1 << 50), "cut short: tensor 'Q4_K' ends at byte"),
    ('Q4_K', struct.pack('<IQ', 2, 500), r"tensor 'Q4_K' has rows of \(500,\), no multiple of 256"),
    ('Q4_K', struct.pack('<I', 9), "tensor 'Q4_K' has 9 axes"),
    ('x.names', struct.pack('<I', 77), 'x.names in its metadata is of type 77'),
    ('x.names', struct.pack('<IIQ', 9, 8, 1 << 60), 'it ends in |is no UTF-8|is damaged'),
    ('x.names', struct.pack('<II', 9, 9), 'x.names in its metadata is an array of type 9'),
    ('x.names', struct.pack('<IIQQ', 9, 8, 3, 1 << 60), 'it ends in x.names in its metadata'),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named(at, value, message, path):
  content = bytearray(path.read_bytes())
  if isinstance(at, str):
    at = content.index(struct.pack('<Q', len(at)) + at.encode()) + 8 + len(at)
  content[at : at + len(value)] = value
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'tiny.gguf.*({message})'):
    GgufFile(path)
