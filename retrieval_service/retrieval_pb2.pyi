from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("queries", "dim", "k", "return_embeddings", "generation", "index_id")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    RETURN_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    queries: bytes
    dim: int
    k: int
    return_embeddings: bool
    generation: int
    index_id: str
    def __init__(self, queries: _Optional[bytes] = ..., dim: _Optional[int] = ..., k: _Optional[int] = ..., return_embeddings: _Optional[bool] = ..., generation: _Optional[int] = ..., index_id: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("ids", "scores", "embeddings", "generation", "edits", "index_id")
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    scores: bytes
    embeddings: bytes
    generation: int
    edits: int
    index_id: str
    def __init__(self, ids: _Optional[bytes] = ..., scores: _Optional[bytes] = ..., embeddings: _Optional[bytes] = ..., generation: _Optional[int] = ..., edits: _Optional[int] = ..., index_id: _Optional[str] = ...) -> None: ...

class IndexOptions(_message.Message):
    __slots__ = ("index_type", "bytes_per_vector", "nlist", "opq", "nprobe", "rerank", "train_size")
    INDEX_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_VECTOR_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    OPQ_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    index_type: str
    bytes_per_vector: int
    nlist: int
    opq: bool
    nprobe: int
    rerank: int
    train_size: int
    def __init__(self, index_type: _Optional[str] = ..., bytes_per_vector: _Optional[int] = ..., nlist: _Optional[int] = ..., opq: _Optional[bool] = ..., nprobe: _Optional[int] = ..., rerank: _Optional[int] = ..., train_size: _Optional[int] = ...) -> None: ...

class BuildHeader(_message.Message):
    __slots__ = ("dim", "options", "metadata_json", "build_id", "edits_applied", "forget_edits", "index_id")
    DIM_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    EDITS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    FORGET_EDITS_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    dim: int
    options: IndexOptions
    metadata_json: str
    build_id: str
    edits_applied: int
    forget_edits: bool
    index_id: str
    def __init__(self, dim: _Optional[int] = ..., options: _Optional[_Union[IndexOptions, _Mapping]] = ..., metadata_json: _Optional[str] = ..., build_id: _Optional[str] = ..., edits_applied: _Optional[int] = ..., forget_edits: _Optional[bool] = ..., index_id: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("ids", "embeddings", "type")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FLOAT16: _ClassVar[Chunk.Type]
        FLOAT32: _ClassVar[Chunk.Type]
    FLOAT16: Chunk.Type
    FLOAT32: Chunk.Type
    IDS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    embeddings: bytes
    type: Chunk.Type
    def __init__(self, ids: _Optional[bytes] = ..., embeddings: _Optional[bytes] = ..., type: _Optional[_Union[Chunk.Type, str]] = ...) -> None: ...

class BuildRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: BuildHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[BuildHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class EditHeader(_message.Message):
    __slots__ = ("edit_id", "dim", "delete_ids", "metadata_json", "only_new_ids", "delete_absent", "check_only", "index_id")
    EDIT_ID_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    DELETE_IDS_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    ONLY_NEW_IDS_FIELD_NUMBER: _ClassVar[int]
    DELETE_ABSENT_FIELD_NUMBER: _ClassVar[int]
    CHECK_ONLY_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    edit_id: str
    dim: int
    delete_ids: bytes
    metadata_json: str
    only_new_ids: bool
    delete_absent: bool
    check_only: bool
    index_id: str
    def __init__(self, edit_id: _Optional[str] = ..., dim: _Optional[int] = ..., delete_ids: _Optional[bytes] = ..., metadata_json: _Optional[str] = ..., only_new_ids: _Optional[bool] = ..., delete_absent: _Optional[bool] = ..., check_only: _Optional[bool] = ..., index_id: _Optional[str] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: EditHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[EditHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("generation", "edits", "count", "ids", "absent_ids")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_IDS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    edits: int
    count: int
    ids: bytes
    absent_ids: bytes
    def __init__(self, generation: _Optional[int] = ..., edits: _Optional[int] = ..., count: _Optional[int] = ..., ids: _Optional[bytes] = ..., absent_ids: _Optional[bytes] = ...) -> None: ...

class CompactRequest(_message.Message):
    __slots__ = ("build_id", "index_id")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    index_id: str
    def __init__(self, build_id: _Optional[str] = ..., index_id: _Optional[str] = ...) -> None: ...

class GenerationResponse(_message.Message):
    __slots__ = ("generation", "count")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    generation: int
    count: int
    def __init__(self, generation: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("service", "protocol_version", "generation", "count", "dim", "options", "factory", "metadata_json", "generations", "building", "index_directory", "edits", "next_id", "index_id")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FACTORY_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    BUILDING_FIELD_NUMBER: _ClassVar[int]
    INDEX_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    service: str
    protocol_version: int
    generation: int
    count: int
    dim: int
    options: IndexOptions
    factory: str
    metadata_json: str
    generations: _containers.RepeatedScalarFieldContainer[int]
    building: bool
    index_directory: str
    edits: int
    next_id: int
    index_id: str
    def __init__(self, service: _Optional[str] = ..., protocol_version: _Optional[int] = ..., generation: _Optional[int] = ..., count: _Optional[int] = ..., dim: _Optional[int] = ..., options: _Optional[_Union[IndexOptions, _Mapping]] = ..., factory: _Optional[str] = ..., metadata_json: _Optional[str] = ..., generations: _Optional[_Iterable[int]] = ..., building: _Optional[bool] = ..., index_directory: _Optional[str] = ..., edits: _Optional[int] = ..., next_id: _Optional[int] = ..., index_id: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("owner", "generations", "index_id")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    owner: str
    generations: _containers.RepeatedScalarFieldContainer[int]
    index_id: str
    def __init__(self, owner: _Optional[str] = ..., generations: _Optional[_Iterable[int]] = ..., index_id: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("index_id",)
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    index_id: str
    def __init__(self, index_id: _Optional[str] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("index_directory", "index_id")
    INDEX_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    index_directory: str
    index_id: str
    def __init__(self, index_directory: _Optional[str] = ..., index_id: _Optional[str] = ...) -> None: ...

class SwapResponse(_message.Message):
    __slots__ = ("index_id", "generation", "count", "former_index_id", "former_directory", "pinned_by")
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FORMER_INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    FORMER_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PINNED_BY_FIELD_NUMBER: _ClassVar[int]
    index_id: str
    generation: int
    count: int
    former_index_id: str
    former_directory: str
    pinned_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index_id: _Optional[str] = ..., generation: _Optional[int] = ..., count: _Optional[int] = ..., former_index_id: _Optional[str] = ..., former_directory: _Optional[str] = ..., pinned_by: _Optional[_Iterable[str]] = ...) -> None: ...
