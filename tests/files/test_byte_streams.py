"""What a user's file is, told by its first bytes."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from ralm_jax.files import byte_streams
from ralm_jax.files.json_records import LineReader

TEXT = b'{"id": "1"}\n' * 3000


def _zstd(content):
  return pa.compress(content, codec='zstd', asbytes=True)


@pytest.mark.parametrize('pack', [bytes, gzip.compress, bz2.compress, lzma.compress, _zstd])
@pytest.mark.parametrize('name', ['p.jsonl', 'p.jsonl.gz'])
def test_compressions_are_told_by_content(tmp_path, pack, name):
  path = tmp_path / name
  path.write_bytes(pack(TEXT))
  assert b''.join(content for _, content in LineReader(str(path))) == TEXT


@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress, _zstd])
def test_compressed_files_cut_short(tmp_path, pack):
  path = tmp_path / 'p'
  noise = b'\n'.join(b'%d' % (i**9) for i in range(20000))
  path.write_bytes(pack(noise)[:-1500])
  with pytest.raises(ValueError, match=r'p:\d+: the \w+ file is damaged or cut short'):
    list(LineReader(str(path)))


def _zip():
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('a', 'b')
  return buffer.getvalue()


def _tar():
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('a'))
  return buffer.getvalue()


def _parquet():
  buffer = io.BytesIO()
  pyarrow.parquet.write_table(pa.table({'id': ['1']}), buffer)
  return buffer.getvalue()


def _arrow():
  buffer = io.BytesIO()
  table = pa.table({'id': ['1']})
  with pa.ipc.new_file(buffer, table.schema) as writer:
    writer.write_table(table)
  return buffer.getvalue()


OTHERS = {
  'lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n', 'git lfs pull'),
  'html': (b'\n<!DOCTYPE html>\n<html>', 'a web page'),
  'parquet': (_parquet(), 'a parquet file; write its rows as jsonl'),
  'arrow': (_arrow(), 'an Arrow file'),
  'zip': (_zip(), 'a zip archive'),
  'tar': (_tar(), 'a tar archive'),
  'tar.gz': (gzip.compress(_tar()), 'a tar archive'),
  'pickle': (pickle.dumps([1]), 'a pickle'),
  'utf-16': ('{"id": 1}'.encode('utf-16'), 'UTF-16; convert it: iconv'),
  'utf-16-le': ('{"id": 1}'.encode('utf-16-le'), 'UTF-16'),
}


@pytest.mark.parametrize('case', OTHERS)
def test_what_is_not_the_file(tmp_path, case):
  content, said = OTHERS[case]
  path = tmp_path / 'passages.jsonl'
  path.write_bytes(content)
  with pytest.raises(ValueError) as caught, byte_streams.open_bytes(str(path)):
    pass
  assert str(caught.value).startswith(f'{path}: this is ') and said in str(caught.value)
