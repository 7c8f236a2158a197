"""Chunks of vectors as messages, both ways."""

from collections.abc import Iterator

import numpy as np

from retrieval_service import protocol
from retrieval_service import retrieval_pb2

_DTYPES = {retrieval_pb2.Chunk.FLOAT16: np.dtype('<f2'),
           retrieval_pb2.Chunk.FLOAT32: np.dtype('<f4')}


def write_chunks(
    ids: np.ndarray | None, embeddings: np.ndarray, dim: int,
) -> Iterator[retrieval_pb2.BuildRequest]:
  """Cuts vectors of any number into messages.

  Args:
    ids: [rows] integers; None for those that follow on.
    embeddings: [rows, dim]; float16 travels as such, all else as float32.
    dim: What the build was announced with.

  Raises:
    ValueError: Shapes or types that do not fit.
  """
  embeddings = np.asarray(embeddings)
  if embeddings.ndim != 2 or embeddings.shape[1] != dim:
    raise ValueError(f'embeddings of shape {list(embeddings.shape)} do not fit '
                     f'the dimension {dim} of this build')
  if ids is not None:
    ids = np.asarray(ids)
    if ids.shape != (len(embeddings),):
      raise ValueError(f'{len(embeddings)} embeddings came with ids of shape '
                       f'{list(ids.shape)}')
    if len(ids) and not np.issubdtype(ids.dtype, np.integer):
      raise ValueError(f'passage ids must be integers, found {ids.dtype}')
  kind = (retrieval_pb2.Chunk.FLOAT16 if embeddings.dtype == np.float16
          else retrieval_pb2.Chunk.FLOAT32)
  dtype = _DTYPES[kind]
  step = max(1, protocol.CHUNK_BYTES // (dim * dtype.itemsize))
  for begin in range(0, len(embeddings), step):
    part = slice(begin, begin + step)
    chunk = retrieval_pb2.Chunk(
        embeddings=np.ascontiguousarray(embeddings[part], dtype).tobytes(),
        type=kind)
    if ids is not None:
      chunk.ids = np.ascontiguousarray(ids[part], '<i8').tobytes()
    yield retrieval_pb2.BuildRequest(chunk=chunk)


def read_chunk(
    request: retrieval_pb2.BuildRequest, dim: int,
) -> tuple[np.ndarray | None, np.ndarray]:
  """The ids (None: those that follow on) and embeddings of a message.

  Raises:
    ValueError: It is no chunk, or its bytes are no whole number of vectors.
  """
  if request.WhichOneof('part') != 'chunk':
    raise ValueError('only the first message of a build may be a header')
  chunk = request.chunk
  dtype = _DTYPES.get(chunk.type)
  if dtype is None:
    raise ValueError(f'unknown chunk type {chunk.type}')
  if dim < 1 or len(chunk.embeddings) % (dim * dtype.itemsize):
    raise ValueError(f'a chunk of {len(chunk.embeddings)} bytes is no whole '
                     f'number of {dtype} vectors of dimension {dim}')
  if len(chunk.ids) % 8:
    raise ValueError(f'{len(chunk.ids)} bytes of ids are no int64 array')
  ids = np.frombuffer(chunk.ids, '<i8') if chunk.ids else None
  return ids, np.frombuffer(chunk.embeddings, dtype).reshape(-1, dim)
