"""Arrays, chunks of vectors and statuses as messages, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import json
from typing import Any

import numpy as np

from retrieval_service import checks, protocol, retrieval_pb2
from retrieval_service.options import IndexOptions
from retrieval_service.results import ServerStatus

Request = retrieval_pb2.BuildRequest | retrieval_pb2.EditRequest
# Ids (None: those that follow on) and embeddings.
Vectors = tuple[np.ndarray | None, np.ndarray]

_DTYPES: dict[int, np.dtype[Any]] = {
  retrieval_pb2.Chunk.FLOAT16: np.dtype('<f2'),
  retrieval_pb2.Chunk.FLOAT32: np.dtype('<f4'),
}


def write_chunks(
  ids: np.ndarray | None, embeddings: np.ndarray, dim: int
) -> Iterator[retrieval_pb2.Chunk]:
  """Cuts vectors into messages, float16 as such and all else as float32, or ValueError."""
  embeddings = np.asarray(embeddings)
  if embeddings.ndim != 2 or embeddings.shape[1] != dim:
    raise ValueError(
      f'embeddings of shape {list(embeddings.shape)} do not fit '
      f'the dimension {dim} that was announced'
    )
  if ids is not None:
    ids = np.asarray(ids)
    checks.check_paired(ids, len(embeddings))
  kinds = retrieval_pb2.Chunk
  kind = kinds.FLOAT16 if embeddings.dtype == np.float16 else kinds.FLOAT32
  dtype = _DTYPES[kind]
  step = max(1, protocol.CHUNK_BYTES // (dim * dtype.itemsize))
  for begin in range(0, len(embeddings), step):
    part = slice(begin, begin + step)
    vectors = np.ascontiguousarray(embeddings[part], dtype)
    chunk = retrieval_pb2.Chunk(embeddings=vectors.tobytes(), type=kind)
    if ids is not None:
      chunk.ids = write_ids(ids[part])
    yield chunk


def read_header(requests: Iterator[Request]) -> Any:
  """The header that a build or an edit begins with, or ValueError."""
  first = next(requests, None)
  if first is None or first.WhichOneof('part') != 'header':
    raise ValueError('the first message of an upload must be its header')
  return first.header


def read_chunks(requests: Iterator[Request], dim: int) -> Iterator[Vectors]:
  """What is in each message after the header; ValueError for what is no vectors."""
  for request in requests:
    if request.WhichOneof('part') != 'chunk':
      raise ValueError('only the first message of an upload may be a header')
    chunk = request.chunk
    dtype = _DTYPES.get(chunk.type)
    if dtype is None:
      raise ValueError(f'unknown chunk type {chunk.type}')
    if dim < 1 or len(chunk.embeddings) % (dim * dtype.itemsize):
      raise ValueError(
        f'a chunk of {len(chunk.embeddings)} bytes is no whole '
        f'number of {dtype} vectors of dimension {dim}'
      )
    ids = read_ids(chunk.ids) if chunk.ids else None
    yield ids, np.frombuffer(chunk.embeddings, dtype).reshape(-1, dim)


def join_chunks(chunks: Iterator[Vectors], dim: int) -> Vectors:
  """All at once; the ids are None where none came with any. Mixed is a ValueError."""
  parts = list(chunks)
  if not parts:
    return np.zeros(0, np.int64), np.zeros((0, dim), np.float16)
  ids = [part for part, _ in parts if part is not None]
  if ids and len(ids) < len(parts):
    raise ValueError('either all vectors of an edit come with ids or none')
  embeddings = np.concatenate([embeddings for _, embeddings in parts])
  return np.concatenate(ids) if ids else None, embeddings


def write_ids(ids: np.ndarray | Sequence[int]) -> bytes:
  """The inverse of `read_ids`; ValueError for what is no row of integers."""
  ids = np.asarray(ids)
  if ids.ndim != 1:
    raise ValueError(f'passage ids must be [n], found shape {list(ids.shape)}')
  if len(ids) and not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f'passage ids must be integers, found {ids.dtype}')
  return ids.astype('<i8').tobytes()


def read_ids(data: bytes) -> np.ndarray:
  """[n] int64; ValueError for bytes that are no whole number of ids."""
  if len(data) % 8:
    raise ValueError(f'{len(data)} bytes of ids are no int64 array')
  return np.frombuffer(data, '<i8')


def write_options(options: IndexOptions) -> retrieval_pb2.IndexOptions:
  return retrieval_pb2.IndexOptions(**options.to_dict())


def read_options(message: Any) -> IndexOptions:
  return IndexOptions.from_dict({field.name: value for field, value in message.ListFields()})


def write_metadata(metadata: dict[str, Any] | None) -> str:
  try:
    return json.dumps(metadata or {})
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be JSON: {error}') from error


def read_metadata(text: str) -> dict[str, Any]:
  return json.loads(text or '{}')


_CONVERTED = ('options', 'metadata', 'generations')
_SAME_IN_BOTH = [x.name for x in dataclasses.fields(ServerStatus) if x.name not in _CONVERTED]


def write_status(status: ServerStatus) -> retrieval_pb2.StatusResponse:
  return retrieval_pb2.StatusResponse(
    service=protocol.SERVICE_NAME,
    protocol_version=protocol.PROTOCOL_VERSION,
    options=write_options(status.options) if status.options else None,
    metadata_json=json.dumps(status.metadata),
    generations=status.generations,
    **{name: getattr(status, name) for name in _SAME_IN_BOTH},
  )


def read_status(response: retrieval_pb2.StatusResponse) -> ServerStatus:
  return ServerStatus(
    options=read_options(response.options) if response.generation else None,
    metadata=read_metadata(response.metadata_json),
    generations=tuple(response.generations),
    **{name: getattr(response, name) for name in _SAME_IN_BOTH},
  )
