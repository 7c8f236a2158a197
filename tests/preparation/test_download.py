"""Downloads from a local server that behaves as badly as real ones."""

import contextlib
import hashlib
import http.server
import json
import threading

import pytest

from ralm_jax.preparation import download, fetched
from ralm_jax.preparation.download import Patience

CONTENT = bytes(range(256)) * 4096  # 1 MiB, more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATIENCE = Patience(timeout_s=10, attempts=3, back_off_s=0.01)


class Server:
  """Serves `content` at any path; attributes say how it behaves.

  Attributes:
    ranges: whether it knows Range at all.
    cuts: at how many bytes of each answer to cut the connection, in turn.
    statuses: to answer with in turn, before it serves.
    requests: (path, headers) of each.
    excess: bytes that it sends behind the file.
  """

  def __init__(self, content=CONTENT):
    self.content, self.tag, self.ranges = content, '"one"', True
    self.cuts, self.statuses, self.requests, self.moved = [], [], [], {}
    self.kind, self.says_length, self.shift = 'application/octet-stream', True, 0
    self.excess = b''
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        outer.answer(self)

      def log_message(self, *_):
        pass

    self.httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.01,))
    self.thread.start()

  def url(self, path='/file.bin'):
    return f'http://127.0.0.1:{self.httpd.server_port}{path}'

  def answer(self, handler):
    headers = dict(handler.headers)
    self.requests.append((handler.path, headers))
    if handler.path in self.moved:
      handler.send_response(302)
      handler.send_header('Location', self.moved[handler.path])
      handler.end_headers()
      return
    if self.statuses and (status := self.statuses.pop(0)) != 200:
      handler.send_response(status)
      handler.end_headers()
      return
    start = 0
    wanted = headers.get('Range')
    if wanted and self.ranges and headers.get('If-Range') in (None, self.tag):
      start = int(wanted.removeprefix('bytes=').removesuffix('-'))
      if start >= len(self.content):
        handler.send_response(416)
        handler.send_header('Content-Range', f'bytes */{len(self.content)}')
        handler.end_headers()
        return
      handler.send_response(206)
      handler.send_header(
        'Content-Range', f'bytes {start}-{len(self.content) - 1}/{len(self.content)}'
      )
    else:
      handler.send_response(200)
    body = self.content[start:]
    if start and self.shift:
      body = body[self.shift :] + b'?' * self.shift
    if self.tag:
      handler.send_header('ETag', self.tag)
    handler.send_header('Content-Type', self.kind)
    if self.says_length:
      handler.send_header('Content-Length', str(len(self.content) - start))
    handler.end_headers()
    cut = self.cuts.pop(0) if self.cuts else None
    with contextlib.suppress(ConnectionError):
      handler.wfile.write((body + self.excess)[:cut])
    handler.close_connection = True

  def close(self):
    self.httpd.shutdown()
    self.httpd.server_close()
    self.thread.join()


@pytest.fixture
def server():
  server = Server()
  yield server
  server.close()


def _fetch(server, tmp_path, **kwargs):
  kwargs = {'patience': PATIENCE, 'progress': False, **kwargs}
  addresses = kwargs.pop('addresses', None) or server.url()
  return download.fetch(addresses, str(tmp_path / 'file.bin'), **kwargs)


def test_what_was_fetched_is_noted_and_not_fetched_again(server, tmp_path):
  file = _fetch(server, tmp_path)
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT
  assert file.fetched and file.sha256 == SHA256 and file.size == len(CONTENT)
  assert json.loads((tmp_path / fetched.CHECKSUMS).read_text()) == {
    'file.bin': {'sha256': SHA256, 'size': len(CONTENT), 'address': server.url()}
  }
  again = _fetch(server, tmp_path)
  assert not again.fetched and again.sha256 == SHA256
  assert len(server.requests) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ['checksums.json', 'file.bin']


def test_a_file_that_changed_on_disk_is_no_longer_trusted(server, tmp_path):
  _fetch(server, tmp_path)
  (tmp_path / 'file.bin').write_bytes(CONTENT[:-1] + b'?')
  with pytest.raises(ValueError, match=rf'expected {SHA256} by .*checksums.json'):
    _fetch(server, tmp_path)
  # Whoever trusts it says so.
  new = fetched.file_sha256(str(tmp_path / 'file.bin'))
  assert _fetch(server, tmp_path, sha256=new.upper()).sha256 == new


def test_goes_on_after_a_cut_connection(server, tmp_path):
  server.cuts = [300_000, 400_000]
  file = _fetch(server, tmp_path)
  assert file.sha256 == SHA256 and file.resumed_at == 700_000
  assert [h.get('Range') for _, h in server.requests] == [None, 'bytes=300000-', 'bytes=700000-']
  assert server.requests[1][1]['If-Range'] == '"one"'


def test_another_process_goes_on_where_one_gave_up(server, tmp_path):
  server.cuts = [300_000] + [0] * 3
  with pytest.raises(ConnectionError, match='300,000 bytes are in .*goes on'):
    _fetch(server, tmp_path)
  assert not (tmp_path / 'file.bin').exists()
  assert _fetch(server, tmp_path).resumed_at == 300_000
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT


def test_a_file_that_changed_between_is_fetched_anew(server, tmp_path):
  server.cuts = [300_000] + [0] * 3
  with pytest.raises(ConnectionError):
    _fetch(server, tmp_path)
  server.content, server.tag = CONTENT[::-1], '"two"'
  file = _fetch(server, tmp_path)
  assert file.resumed_at == 0
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges(server, tmp_path):
  server.ranges = False
  server.cuts = [300_000]
  assert _fetch(server, tmp_path).resumed_at == 0
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT


def test_nothing_is_spliced_without_a_validator(server, tmp_path):
  """But a checksum may prove that the parts fit."""
  server.tag, server.cuts = '', [300_000]
  assert _fetch(server, tmp_path).resumed_at == 0
  assert all('Range' not in h for _, h in server.requests)
  (tmp_path / 'file.bin').unlink()
  (tmp_path / fetched.CHECKSUMS).unlink()
  server.cuts = [300_000]
  assert _fetch(server, tmp_path, sha256=SHA256).resumed_at == 300_000


def test_a_wrong_splice_is_fetched_anew(server, tmp_path):
  """A server that says the same tag of other bytes."""
  server.shift, server.cuts = 7, [300_000]
  file = _fetch(server, tmp_path, sha256=SHA256)
  assert file.sha256 == SHA256 and file.resumed_at == 0
  assert len(server.requests) == 3


def test_all_of_a_file_lay_there_already(server, tmp_path):
  server.cuts = [300_000] + [0] * 3
  with pytest.raises(ConnectionError):
    _fetch(server, tmp_path)
  (tmp_path / 'file.bin.partial').write_bytes(CONTENT)
  assert _fetch(server, tmp_path).resumed_at == len(CONTENT)
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT


@pytest.mark.parametrize('says_length', [True, False])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, says_length):
  server.says_length = says_length
  with pytest.raises(ValueError, match='expected 000.*changed the file.*--sha256 file.bin='):
    _fetch(server, tmp_path, sha256='0' * 64)
  assert [p.name for p in tmp_path.glob('file.bin*')] == ['file.bin.lock']


@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_a_refusal_says_where_to_get_the_file(server, tmp_path, status):
  server.statuses = [status]
  with pytest.raises(FileNotFoundError, match=f'answers {status} .*by hand from there'):
    _fetch(server, tmp_path, by_hand='Get it by hand from there.')
  assert len(server.requests) == 1  # It would refuse again.


def test_a_passing_failure_is_tried_again(server, tmp_path):
  server.statuses = [503, 429, 200]
  assert _fetch(server, tmp_path).sha256 == SHA256
  server.statuses = [503] * 3
  (tmp_path / 'file.bin').unlink()
  with pytest.raises(ConnectionError, match='503 .*3 times'):
    _fetch(server, tmp_path)


def test_redirects_and_copies(server, tmp_path):
  server.moved = {'/old': server.url('/new')}
  server.statuses = []
  file = _fetch(server, tmp_path, addresses=server.url('/old'))
  assert file.sha256 == SHA256
  (tmp_path / 'file.bin').unlink()
  server.statuses = [404, 200]
  file = _fetch(server, tmp_path, addresses=[server.url('/a'), server.url('/b')])
  assert file.address == server.url('/b')


def test_a_page_in_place_of_the_file_is_a_refusal(server, tmp_path):
  server.kind = 'text/html; charset=utf-8'
  server.moved = {'/file.bin': server.url('/landing')}
  with pytest.raises(FileNotFoundError, match='web page, .*/landing, in place'):
    _fetch(server, tmp_path)


def test_a_file_of_another_size_is_a_refusal(server, tmp_path):
  with pytest.raises(FileNotFoundError, match='1,048,576 bytes, expected 5'):
    _fetch(server, tmp_path, size=5)
  server.says_length = server.ranges = False
  server.cuts = [1000] * 9
  with pytest.raises(ConnectionError, match='ended the connection at 1,000 of 1,048,576'):
    _fetch(
      server,
      tmp_path,
      size=len(CONTENT),
      patience=Patience(timeout_s=10, attempts=2, back_off_s=0.01),
    )


@pytest.mark.parametrize('says_length', [True, False])
def test_a_server_that_sends_more_than_it_announced(server, tmp_path, says_length):
  server.excess, server.says_length = b'?' * 1000, says_length
  if says_length:
    assert _fetch(server, tmp_path).sha256 == SHA256
    return
  # Of what it does not announce the catalogue may know the size.
  for _ in range(2):
    with pytest.raises(FileNotFoundError, match='a file of more than 1,048,576 bytes'):
      _fetch(server, tmp_path, size=len(CONTENT))
    assert not (tmp_path / 'file.bin.partial').exists()
  server.excess = b''
  assert _fetch(server, tmp_path, size=len(CONTENT)).sha256 == SHA256


def test_a_whole_file_of_another_size_is_not_resumed(server, tmp_path):
  server.cuts = [300_000] + [0] * 3
  with pytest.raises(ConnectionError):
    _fetch(server, tmp_path, size=len(CONTENT))
  (tmp_path / 'file.bin.partial').write_bytes(CONTENT + b'more')
  server.content = CONTENT + b'more'
  with pytest.raises(FileNotFoundError, match='1,048,580 bytes, expected 1,048,576'):
    _fetch(server, tmp_path, size=len(CONTENT))


def test_killed_before_the_new_file_begins(server, tmp_path, monkeypatch):
  """Bytes of the old file never count as the beginning of the new one."""
  server.cuts = [300_000] + [0] * 3
  with pytest.raises(ConnectionError):
    _fetch(server, tmp_path)
  server.content, server.tag = CONTENT[::-1], '"two"'
  write = download._write_state

  def killed(*args):
    write(*args)
    raise SystemExit

  with monkeypatch.context() as patch:
    patch.setattr(download, '_write_state', killed)
    with pytest.raises(SystemExit):
      _fetch(server, tmp_path)
  _fetch(server, tmp_path)
  assert (tmp_path / 'file.bin').read_bytes() == CONTENT[::-1]


def test_only_http(tmp_path):
  with pytest.raises(ValueError, match='http or https'):
    _fetch(None, tmp_path, addresses='file:///etc/hosts')


def test_nobody_listens(server, tmp_path):
  server.close()
  with pytest.raises(ConnectionError, match='cannot be reached .*From there.'):
    _fetch(server, tmp_path, patience=Patience(1, 2, 0.01), by_hand='From there.')


def test_a_copy_takes_the_place_of_a_host_that_is_gone(server, tmp_path):
  gone = Server()
  gone.close()
  file = _fetch(
    server, tmp_path, addresses=[gone.url(), server.url()], patience=Patience(5, 2, 0.01)
  )
  assert file.address == server.url()


def test_a_damaged_list_of_checksums_is_not_believed(server, tmp_path):
  (tmp_path / fetched.CHECKSUMS).write_text('{"file.bin": {"sha256": "no"}}')
  with pytest.raises(ValueError, match='no list of checksums'):
    _fetch(server, tmp_path)
  (tmp_path / fetched.CHECKSUMS).unlink()
  with pytest.raises(ValueError, match='is no SHA-256'):
    _fetch(server, tmp_path, sha256='abc')


def test_two_processes_do_not_write_one_file(server, tmp_path):
  with fetched.only_process(str(tmp_path / 'file.bin')):
    with pytest.raises(BlockingIOError, match='another process'):
      _fetch(server, tmp_path)
