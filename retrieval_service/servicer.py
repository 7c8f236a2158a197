"""What the retrieval process does on each call; `server.py` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import logging
from typing import TypeVar

import grpc
import numpy as np

from retrieval_service import background, faiss_index, retrieval_pb2, retrieval_pb2_grpc, wire
from retrieval_service.edits import WantedEdit
from retrieval_service.files import PathLike
from retrieval_service.live import LiveView
from retrieval_service.live_index import EmptyIndexError
from retrieval_service.options import ServingOptions
from retrieval_service.results import IndexSwappedError
from retrieval_service.serving import Serving

logger = logging.getLogger(__name__)

Answer = TypeVar('Answer')
# The first kind that an error is decides.
_CODES = {
  EmptyIndexError: grpc.StatusCode.FAILED_PRECONDITION,
  IndexSwappedError: grpc.StatusCode.ABORTED,
  ValueError: grpc.StatusCode.INVALID_ARGUMENT,
  LookupError: grpc.StatusCode.NOT_FOUND,
}


class _Abandoned(Exception):
  """The caller of a build went away."""


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServicer):
  """Serves one generation of one index; older ones on request, by number.

  Searches and edits run in the thread of their call, what takes long in one of lowest priority.
  """

  def __init__(self, directory: PathLike, options: ServingOptions = ServingOptions()):
    """Opens the current generation, if there is one; see `RetrievalServer`."""
    self._threads = options.threads or faiss_index.threads()
    # The core left over is where the threads that answer wake without waiting.
    self._build_threads = options.build_threads or max(1, self._threads - 1)
    self._serving = Serving(directory, dataclasses.replace(options, threads=self._threads))

  @property
  def current(self) -> LiveView | None:
    return self._serving.served().index.current

  def prepare_thread(self) -> None:
    """OpenMP's thread number belongs to the calling thread: set it in each."""
    faiss_index.set_threads(self._threads)

  def Search(self, request, context):
    with _errors_as_status(context):
      index = self._serving.served(request.index_id).index
      view = index.view(request.generation)
      if request.dim < 1 or len(request.queries) % (4 * request.dim):
        raise ValueError(
          f'{len(request.queries)} bytes of queries are no whole number of '
          f'float32 vectors of dimension {request.dim}'
        )
      queries = np.frombuffer(request.queries, '<f4').reshape(-1, request.dim)
      result = view.search(queries, request.k, request.return_embeddings)
      response = retrieval_pb2.SearchResponse(
        ids=result.ids.astype('<i8', copy=False).tobytes(),
        scores=result.scores.astype('<f4', copy=False).tobytes(),
        generation=result.generation,
        edits=result.edits,
        index_id=index.index_id,
      )
      if result.embeddings is not None:
        response.embeddings = result.embeddings.astype('<f2', copy=False).tobytes()
      return response

  def Build(self, request_iterator, context):
    with _errors_as_status(context):
      header = wire.read_header(request_iterator)
      served = self._serving.served(header.index_id)
      applied = served.index.edits
      if header.HasField('edits_applied'):
        applied = header.edits_applied
      return self._in_background(
        lambda: served.builder.build(
          wire.read_chunks(request_iterator, header.dim),
          header.dim,
          wire.read_options(header.options),
          wire.read_metadata(header.metadata_json),
          build_id=header.build_id,
          edits_applied=applied,
          forget_edits=header.forget_edits,
          check=_abandonment(context),
        )
      )

  def Compact(self, request, context):
    with _errors_as_status(context):
      served = self._serving.served(request.index_id)
      return self._in_background(
        lambda: served.builder.compact(build_id=request.build_id, check=_abandonment(context))
      )

  def Edit(self, request_iterator, context):
    with _errors_as_status(context):
      header = wire.read_header(request_iterator)
      index = self._serving.served(header.index_id).index
      ids, embeddings = wire.join_chunks(wire.read_chunks(request_iterator, header.dim), header.dim)
      deletes, metadata = wire.read_ids(header.delete_ids), wire.read_metadata(header.metadata_json)
      edit = WantedEdit(ids, embeddings, deletes, metadata, header.edit_id)
      if header.check_only:
        absent = index.missing(edit.delete_ids)
        return retrieval_pb2.EditResponse(absent_ids=wire.write_ids(absent))
      allowed = {'only_new_ids': header.only_new_ids, 'delete_absent': header.delete_absent}
      edited = index.edit(edit, **allowed)
      return retrieval_pb2.EditResponse(
        generation=edited.generation,
        edits=edited.edits,
        count=edited.count,
        ids=wire.write_ids(edited.ids),
        absent_ids=wire.write_ids(edited.absent_ids),
      )

  def Status(self, request, context):
    with _errors_as_status(context):
      served = self._serving.served()
      index = served.index
      return wire.write_status(index.status(index.current, building=served.builder.building))

  def Pin(self, request, context):
    with _errors_as_status(context):
      index = self._serving.served(request.index_id).index
      index.check_folder()
      index.store.pin(request.owner, request.generations)
      return retrieval_pb2.PinResponse()

  def Reload(self, request, context):
    with _errors_as_status(context):
      index = self._serving.served(request.index_id).index
      # It reads every byte of a generation.
      return self._in_background(index.reload)

  def Swap(self, request, context):
    with _errors_as_status(context):
      self._serving.served(request.index_id)
      swapped = self._lowly(lambda: self._serving.swap(request.index_directory))
      view, former = swapped.served.index.current, swapped.former
      pins = {}
      if former.directory != swapped.served.directory:
        with contextlib.suppress(ValueError, OSError):  # damaged, not ours to use
          pins = former.index.store.pinned()
      return retrieval_pb2.SwapResponse(
        index_id=swapped.served.index.index_id,
        generation=view.number if view else 0,
        count=view.count if view else 0,
        former_index_id=former.index.index_id,
        former_directory=former.directory,
        pinned_by=sorted(pins),
      )

  def _in_background(self, work: Callable[[], LiveView | None]):
    view = self._lowly(work)
    if view is None:
      return retrieval_pb2.GenerationResponse()
    return retrieval_pb2.GenerationResponse(generation=view.number, count=view.count)

  def _lowly(self, work: Callable[[], Answer]) -> Answer:
    """Work that must not slow searches."""

    def prepared() -> Answer:
      faiss_index.set_threads(self._build_threads)
      return work()

    return background.run(prepared, 'build')


def _abandonment(context: grpc.ServicerContext) -> Callable[[], None]:
  """What ends a build whose caller went away."""

  def check() -> None:
    if not context.is_active():
      raise _Abandoned

  return check


@contextlib.contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
  """Every error reaches the caller as one status with one message."""
  try:
    yield
    return
  except _Abandoned:
    logger.warning('a build was abandoned by its caller; nothing changed')
    code, message = grpc.StatusCode.CANCELLED, 'abandoned by the caller'
  except (EmptyIndexError, IndexSwappedError, ValueError, LookupError) as error:
    code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
    message = str(error.args[0] if isinstance(error, LookupError) else error)
  except OSError as error:
    logger.error('%s', error)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    message = error.strerror or str(error)
  except grpc.RpcError:
    code, message = grpc.StatusCode.CANCELLED, 'the upload ended early'
  except Exception as error:  # pylint: disable=broad-except
    logger.exception('a call failed')
    code = grpc.StatusCode.INTERNAL
    message = f'{type(error).__name__}: {error}'
  context.abort(code, message)
