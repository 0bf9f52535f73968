"""File systems for tests. One has the two properties of an object store that matter here, over a local folder.

An object is replaced at once, and may be put on the condition that there is none.
"""

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

BUCKET, KEPT = "bucket", "kept"


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """``bucket:///folder/object``; `conditions` says whether it takes any, `away` whether it is reached at all."""

    protocol = BUCKET
    conditions = True
    away = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{BUCKET}://")

    def _reach(self) -> None:
        if Bucket.away:
            raise RuntimeError("the endpoint does not answer")  # as stores do, of classes of their own

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._reach()
        if mode == "create" and not Bucket.conditions:
            raise NotImplementedError("A header you provided implies functionality that is not implemented")
        target = Path(self._strip_protocol(path))
        aside = target.with_name(f"{target.name}.{uuid4().hex}")
        aside.write_bytes(value)
        try:
            if mode == "create":
                os.link(aside, target)  # FileExistsError
            else:
                os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self._reach()
        return Path(self._strip_protocol(path)).read_bytes()

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._reach()
        return Path(self._strip_protocol(path)).open(mode)

    def exists(self, path: str, **kwargs: Any) -> bool:
        self._reach()
        return Path(self._strip_protocol(path)).exists()

    def rm_file(self, path: str) -> None:
        self._reach()
        Path(self._strip_protocol(path)).unlink()


class Kept(MemoryFileSystem):  # type: ignore[misc]
    """``kept://bucket/object``: the objects of ``memory://``, as if they outlived this process."""

    protocol = KEPT

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.replace(f"{KEPT}://", "memory://", 1))


fsspec.register_implementation(BUCKET, Bucket, clobber=True)
fsspec.register_implementation(KEPT, Kept, clobber=True)
