"""Chunks of vectors as messages, both ways."""

from collections.abc import Iterator, Sequence

import numpy as np

from retrieval_service import protocol, retrieval_pb2

Request = retrieval_pb2.BuildRequest | retrieval_pb2.EditRequest
Header = retrieval_pb2.BuildHeader | retrieval_pb2.EditHeader

_DTYPES = {
  retrieval_pb2.Chunk.FLOAT16: np.dtype('<f2'),
  retrieval_pb2.Chunk.FLOAT32: np.dtype('<f4'),
}


def write_chunks(
  ids: np.ndarray | None, embeddings: np.ndarray, dim: int
) -> Iterator[retrieval_pb2.Chunk]:
  """Cuts vectors of any number into messages.

  Args:
    ids: [rows] integers; None for those that follow on.
    embeddings: [rows, dim]; float16 travels as such, all else as float32.
    dim: What was announced.

  Raises:
    ValueError: Shapes or types that do not fit.
  """
  embeddings = np.asarray(embeddings)
  if embeddings.ndim != 2 or embeddings.shape[1] != dim:
    raise ValueError(
      f'embeddings of shape {list(embeddings.shape)} do not fit '
      f'the dimension {dim} that was announced'
    )
  if ids is not None:
    ids = np.asarray(ids)
    if ids.shape != (len(embeddings),):
      raise ValueError(f'{len(embeddings)} embeddings came with ids of shape {list(ids.shape)}')
  kind = (
    retrieval_pb2.Chunk.FLOAT16 if embeddings.dtype == np.float16 else retrieval_pb2.Chunk.FLOAT32
  )
  dtype = _DTYPES[kind]
  step = max(1, protocol.CHUNK_BYTES // (dim * dtype.itemsize))
  for begin in range(0, len(embeddings), step):
    part = slice(begin, begin + step)
    chunk = retrieval_pb2.Chunk(
      embeddings=np.ascontiguousarray(embeddings[part], dtype).tobytes(), type=kind
    )
    if ids is not None:
      chunk.ids = write_ids(ids[part])
    yield chunk


def read_header(requests: Iterator[Request]) -> Header:
  """The header that a build or an edit begins with.

  Raises:
    ValueError: It begins with something else, or not at all.
  """
  first = next(requests, None)
  if first is None or first.WhichOneof('part') != 'header':
    raise ValueError('the first message of an upload must be its header')
  return first.header


def read_chunks(
  requests: Iterator[Request], dim: int
) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
  """The ids (None: those that follow on) and embeddings of each message.

  Raises:
    ValueError: One is no chunk, or its bytes are no whole number of vectors.
  """
  for request in requests:
    if request.WhichOneof('part') != 'chunk':
      raise ValueError('only the first message of an upload may be a header')
    yield _read_chunk(request.chunk, dim)


def join_chunks(
  chunks: Iterator[tuple[np.ndarray | None, np.ndarray]], dim: int
) -> tuple[np.ndarray | None, np.ndarray]:
  """All ids (None: none came with any) and embeddings [rows, dim] at once.

  Raises:
    ValueError: Some came with ids and some without.
  """
  parts = list(chunks)
  if not parts:
    return np.zeros(0, np.int64), np.zeros((0, dim), np.float16)
  ids = [part for part, _ in parts if part is not None]
  if ids and len(ids) < len(parts):
    raise ValueError('either all vectors of an edit come with ids or none')
  return (
    np.concatenate(ids) if ids else None,
    np.concatenate([embeddings for _, embeddings in parts]),
  )


def _read_chunk(chunk: retrieval_pb2.Chunk, dim: int) -> tuple[np.ndarray | None, np.ndarray]:
  dtype = _DTYPES.get(chunk.type)
  if dtype is None:
    raise ValueError(f'unknown chunk type {chunk.type}')
  if dim < 1 or len(chunk.embeddings) % (dim * dtype.itemsize):
    raise ValueError(
      f'a chunk of {len(chunk.embeddings)} bytes is no whole '
      f'number of {dtype} vectors of dimension {dim}'
    )
  ids = read_ids(chunk.ids) if chunk.ids else None
  return ids, np.frombuffer(chunk.embeddings, dtype).reshape(-1, dim)


def write_ids(ids: np.ndarray | Sequence[int]) -> bytes:
  """The inverse of `read_ids`, of integers of any type.

  Raises:
    ValueError: They are no row of integers.
  """
  ids = np.asarray(ids)
  if ids.ndim != 1:
    raise ValueError(f'passage ids must be [n], found shape {list(ids.shape)}')
  if len(ids) and not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f'passage ids must be integers, found {ids.dtype}')
  return ids.astype('<i8').tobytes()


def read_ids(data: bytes) -> np.ndarray:
  """[n] int64.

  Raises:
    ValueError: The bytes are no whole number of ids.
  """
  if len(data) % 8:
    raise ValueError(f'{len(data)} bytes of ids are no int64 array')
  return np.frombuffer(data, '<i8')
