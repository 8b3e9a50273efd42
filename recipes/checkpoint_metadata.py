"""Read the metadata of a step checkpoint, a pickle, without running what else a pickle may hold."""

import enum
import pathlib
import pickle
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

# What torch.distributed.checkpoint writes, by module and name. Types of data are found besides.
ALLOWED = {
    "collections": {"OrderedDict"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


def _member(kind: type[enum.Enum], name: str) -> enum.Enum:
    """A member of an enumeration: some Python 3.11, Debian 12's too, write getattr(kind, name)."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError(f"{kind!r}.{name} is no part of a checkpoint's metadata")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module.startswith("pathlib") and name in ("PosixPath", "PurePosixPath"):
            return getattr(pathlib, name)  # Python 3.13 writes pathlib._local
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's metadata")


class MetadataReader(dcp.FileSystemReader):
    """torch's reader, which takes of the metadata's pickle only what torch itself writes.

    `error` is why the metadata can't be read. torch 2.10 (of the CUDA 12 set) keeps it to itself.
    """

    error: Exception | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            return self._read(*args, **kwargs)
        except Exception as error:
            self.error = self.error or error
            raise

    def _read(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("the metadata is of another type")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
