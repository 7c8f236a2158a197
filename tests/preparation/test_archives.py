"""Files out of archives, harmless and not."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile

import pytest

from ralm_jax.preparation import archives


def _tar(path, members, mode='w'):
  with tarfile.open(path, mode) as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      if isinstance(content, str):
        info.type, info.linkname = tarfile.SYMTYPE, content
        archive.addfile(info)
      else:
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
  return str(path)


def _zip(path, members):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members:
      info = zipfile.ZipInfo(name)
      if isinstance(content, str):
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        content = content.encode()
      archive.writestr(info, content)
  return str(path)


def _extract(archive, folder, wanted=lambda name: True, **kwargs):
  return archives.extract(archive, str(folder), wanted, progress=False, **kwargs)


@pytest.mark.parametrize(
  'make, name',
  [
    (_tar, 'a.tar'),
    (lambda p, m: _tar(p, m, 'w:gz'), 'a.tar.gz'),
    (lambda p, m: _tar(p, m, 'w:xz'), 'a.tar.xz'),
    (_zip, 'a.zip'),
  ],
)
def test_takes_the_wanted_files_and_no_links(tmp_path, make, name):
  archive = make(
    tmp_path / name,
    [
      ('data/one.csv', b'1'),
      ('data/two.txt', b'2'),
      ('./deep/er/x.csv', b'3'),
      ('data/link.csv', '/etc/passwd'),
    ],
  )
  assert archives.is_archive(archive)
  files = _extract(archive, tmp_path / 'out', lambda n: n.endswith('.csv'))
  out = tmp_path / 'out'
  assert files == [str(out / 'data/one.csv'), str(out / 'deep/er/x.csv')]
  assert [open(path, 'rb').read() for path in files] == [b'1', b'3']
  assert not os.path.lexists(out / 'data/link.csv')


@pytest.mark.parametrize(
  'name', ['../up.csv', '/abs.csv', 'a/../../up.csv', 'a\\..\\..\\up.csv', 'C:/x.csv']
)
@pytest.mark.parametrize('make', [_tar, _zip])
def test_nothing_is_written_outside(tmp_path, make, name):
  archive = make(tmp_path / ('a.zip' if make is _zip else 'a.tar'), [(name, b'1')])
  (tmp_path / 'in').mkdir()
  with pytest.raises(ValueError, match='outside of the folder'):
    _extract(archive, tmp_path / 'in' / 'out')
  assert not list((tmp_path / 'in').rglob('*.csv')) and not list(tmp_path.glob('*.csv'))


def test_limits_and_damage(tmp_path):
  archive = _tar(tmp_path / 'a.tar.gz', [('a', bytes(1000)), ('b', bytes(1000))], 'w:gz')
  with pytest.raises(ValueError, match='more than 1,500 bytes'):
    _extract(archive, tmp_path / 'one', max_bytes=1500)
  content = os.urandom(100_000)
  archive = _tar(tmp_path / 'b.tar.gz', [('a', content)], 'w:gz')
  cut = open(archive, 'rb').read()[:50_000]
  (tmp_path / 'b.tar.gz').write_bytes(cut)
  with pytest.raises(ValueError, match='damaged or cut short'):
    _extract(archive, tmp_path / 'two')
  (tmp_path / 'c.zip').write_bytes(b'PK no')
  with pytest.raises(ValueError, match='damaged or cut short'):
    _extract(str(tmp_path / 'c.zip'), tmp_path / 'three')
  twice = _tar(tmp_path / 'd.tar', [('a', b'1'), ('./a', b'2')])
  with pytest.raises(ValueError, match='twice'):
    _extract(twice, tmp_path / 'four')


def _rewrite(path, content):
  with open(path, 'wb') as file:
    file.write(content)
  return path


def test_one_bit_of_a_tar_gz_is_noticed(tmp_path):
  # Not compressed within: only the checksum behind the archive's end knows.
  content = gzip.compress(open(_tar(tmp_path / 'a.tar', [('a', b'x' * 5000)]), 'rb').read(), 0)
  path = str(tmp_path / 'a.tar.gz')
  _extract(_rewrite(path, content), tmp_path / 'whole')
  place = content.index(b'xxxx') + 700
  flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
  for name, wanted in (('taken', lambda name: True), ('left', lambda name: False)):
    with pytest.raises(ValueError, match='a.tar.gz is damaged or cut short .*CRC'):
      _extract(_rewrite(path, flipped), tmp_path / name, wanted)


def _of_three(path):
  """A plain tar whose headers are at 0, 1536 and 3072, and its content."""
  _tar(path, [(name, name.encode() * 1000) for name in 'abc'])
  content = open(path, 'rb').read()
  assert all(content[i * 1536 :].startswith(b'abc'[i : i + 1]) for i in range(3))
  return content


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[:1546] + b'?' + content[1547:],  # A header's field.
    lambda content: content[:1536] + bytes(512) + content[2048:],  # A hole.
    lambda content: content[:1536],  # Cut between two members,
    lambda content: content[:1636],  # in a header,
    lambda content: content[:2500],  # in a content,
    lambda content: content[:4608],  # and before the end is marked.
  ],
  ids=['field', 'hole', 'between', 'header', 'content', 'end'],
)
@pytest.mark.parametrize('pack', [bytes, gzip.compress], ids=['plain', 'gz'])
def test_a_tar_that_breaks_off_is_not_whole(tmp_path, damage, pack):
  path = str(tmp_path / 'a.tar')
  content = _of_three(path)
  _extract(_rewrite(path, pack(content)), tmp_path / 'whole')
  with pytest.raises(ValueError, match='a.tar is damaged or cut short'):
    _extract(_rewrite(path, pack(damage(content))), tmp_path / 'damaged')
  with pytest.raises(ValueError, match='a.tar is damaged or cut short'):
    _extract(path, tmp_path / 'unwanted', lambda name: False)


@pytest.mark.parametrize(
  'suffix, pack', [('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress)]
)
def test_damaged_compression_names_the_file(tmp_path, suffix, pack):
  plain = _tar(tmp_path / 'a.tar', [('a', os.urandom(20_000))])
  content = pack(open(plain, 'rb').read())
  path = str(tmp_path / f'a.tar.{suffix}')
  _extract(_rewrite(path, content), tmp_path / 'whole')
  middle = len(content) // 2
  for i, damaged in enumerate(
    (content[:middle], content[:-3], content[:middle] + b'damage!' + content[middle + 7 :])
  ):
    with pytest.raises(ValueError, match=f'a.tar.{suffix} is damaged or cut short'):
      _extract(_rewrite(path, damaged), tmp_path / str(i))
