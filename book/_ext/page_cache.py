"""The cache of executed pages, where what is damaged is thrown away and executed again.

It is jupyter-cache's: a database, and a notebook for each page. A build that is killed, or a disk
that is full, can leave half of that behind, which jupyter-cache trusts. Here an entry counts if it
is, with its data, what was written under its sum, and a database if SQLite finds it whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import nbformat
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import DB_NAME, NbCacheRecord, OrmBase
from jupyter_cache.cache.main import JupyterCacheBase
from nbformat import NotebookNode
from sphinx.util import logging
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from sft_utils.files import remove

LOGGER = logging.getLogger(__name__)


class PageCache(JupyterCacheBase):
    """A folder of executed notebooks, each found by its cells and the digest in its metadata."""

    @property
    def db(self) -> Engine:
        """The database, opened once; a new one where there is none that is whole."""
        if self._db is None:
            try:
                self._db = self._open()
            except (OSError, ValueError, TypeError, SQLAlchemyError, RuntimeError) as error:
                if "locked" in str(error):  # by another process, and whole
                    raise
                warn(
                    f"The cache {self._path} is damaged ({_first_line(error)}). It is thrown away, "
                    "and all pages are executed again."
                )
                remove(self._path)
                self._db = self._open()
        return self._db

    def match_cache_notebook(self, nb: NotebookNode) -> NbCacheRecord:
        """The record of the same page, if its entry is whole. Raises ``KeyError`` if not."""
        record = super().match_cache_notebook(nb)
        path = self._get_notebook_path_cache(record.hashkey)
        try:
            if _sum(path.read_text(encoding="utf-8"), record.data) != record.data["sum"]:
                raise ValueError("it changed since it was written")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warn(
                f"{record.uri}: its entry in the cache, {path.parent}, is damaged "
                f"({_first_line(error)}). It is thrown away, and the page is executed again."
            )
            self.remove_cache(record.pk)
            raise KeyError(record.hashkey) from error
        return record

    def keep(self, uri: str, notebook: NotebookNode, data: dict[str, Any]) -> None:
        """Keep an executed page with its ``data``; where that fails, say so and go on."""
        hashed, key = self.create_hashed_notebook(notebook)
        data = {**data, "sum": _sum(nbformat.writes(hashed, nbformat.NO_CONVERT), data)}
        try:
            remove(self._get_notebook_path_cache(key).parent)  # half an entry, without a record
            bundle = CacheBundleIn(notebook, uri, data=data)
            self.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        except (OSError, SQLAlchemyError, RuntimeError) as error:
            warn(
                f"{uri} could not be kept in the cache {self._path} ({_first_line(error)}). The "
                "next build executes it again."
            )

    def remove_cache(self, pk: int) -> None:
        """Remove an entry, whatever of it is there."""
        remove(self._get_notebook_path_cache(self.get_cache_record(pk).hashkey).parent)
        NbCacheRecord.remove_record(pk, self.db)

    def _open(self) -> Engine:
        # By its parts: in an address of SQLite's a % or a ? in the path would be read as markup.
        file = self.path / DB_NAME
        new = not file.exists()
        engine = create_engine(URL.create("sqlite", database=str(file)))
        try:
            if not (new or inspect(engine).has_table(NbCacheRecord.__tablename__)):
                raise ValueError("it has no table of pages")
            OrmBase.metadata.create_all(engine)
            with engine.connect() as connection:
                found = connection.execute(text("PRAGMA integrity_check")).scalar()
            if found != "ok":
                raise ValueError(found)
            NbCacheRecord.records_all(engine)  # and each record can be read
        except BaseException:
            engine.dispose()
            raise
        return engine


def warn(told: str) -> None:
    """Say what is wrong with the cache. It is mended, so that ``-W`` need not stop the build."""
    LOGGER.info("WARNING: %s", told)


def _sum(notebook: str, data: dict[str, Any]) -> str:
    """A hash of a notebook's text and of all that is kept with it."""
    rest = {name: value for name, value in data.items() if name != "sum"}
    return hashlib.sha256((notebook + json.dumps(rest, sort_keys=True)).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
