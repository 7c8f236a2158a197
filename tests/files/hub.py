"""A server on this machine with as much of the Hugging Face hub as a download needs."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


def _entry(path: str, content: bytes) -> dict:
  return {
    'type': 'file',
    'path': path,
    'size': len(content),
    'oid': hashlib.sha1(content).hexdigest(),
  }


class _Handler(http.server.BaseHTTPRequestHandler):
  hub: 'Hub'

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    url = urllib.parse.urlsplit(self.path)
    parts = urllib.parse.unquote(url.path).strip('/').split('/')
    status, content, headers = self.hub.answer(parts)
    self.send_response(status)
    headers = {'Content-Length': str(len(content)), 'Content-Type': 'application/json', **headers}
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(content)

  def log_message(self, *_):
    pass


class Hub:
  """Models by name and revision: files of a folder."""

  def __init__(self):
    self.models: dict[str, dict[str, dict[str, bytes]]] = {}
    self.gated: set[str] = set()
    self.failing = False
    self.fetched: list[str] = []
    handler = type('Handler', (_Handler,), {'hub': self})
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self.endpoint = 'http://{}:{}'.format(*self._server.server_address)
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def add(self, name: str, files: dict[str, bytes] | pathlib.Path, revision: str = 'main') -> str:
    """Adds a model; returns its commit."""
    if not isinstance(files, dict):
      root = files
      found = [path for path in root.rglob('*') if path.is_file()]
      files = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    commit = hashlib.sha1(f'{name} {revision}'.encode()).hexdigest()
    self.models.setdefault(name, {}).update({revision: files, commit: files})
    return commit

  def answer(self, parts: list[str]) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers for the parts of a path."""
    if self.failing:
      return 503, b'', {}
    listing = parts[:2] == ['api', 'models']
    name = '/'.join(parts[2:4] if listing else parts[:2])
    kind, revision = ([*parts[4 if listing else 2 :]] + ['revision', 'main'])[:2]
    if name not in self.models:
      return 404, b'{}', {'X-Error-Code': 'RepoNotFound'}
    if name in self.gated:
      return 403, b'{}', {'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'gated'}
    if revision not in self.models[name]:
      return 404, b'{}', {'X-Error-Code': 'RevisionNotFound'}
    files = self.models[name][revision]
    commit = next(c for c, own in self.models[name].items() if own is files and len(c) == 40)
    if kind == 'revision':
      siblings = [{'rfilename': path} for path in files]
      return 200, json.dumps({'id': name, 'sha': commit, 'siblings': siblings}).encode(), {}
    if kind == 'tree':
      entries = [_entry(path, content) for path, content in files.items()]
      return 200, json.dumps(entries).encode(), {}
    path = '/'.join(parts[4:])
    if path not in files:
      return 404, b'{}', {'X-Error-Code': 'EntryNotFound'}
    self.fetched.append(path)
    etag = _entry(path, files[path])['oid']
    return 200, files[path], {'ETag': f'"{etag}"', 'X-Repo-Commit': commit}

  def close(self):
    self._server.shutdown()
    self._server.server_close()


@contextlib.contextmanager
def serving():
  """A hub without models."""
  hub = Hub()
  try:
    yield hub
  finally:
    hub.close()
