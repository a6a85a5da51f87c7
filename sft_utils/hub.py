"""The Hub: whether it answers, files that are fetched once and whole, and what to do if not.

`load_error` says what to do about a model that cannot be loaded, from a folder as well.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import write_whole
from .redaction import redact_text

# What is downloaded of a model: what lies at the top, in one format. The small files alone tell all
# but the weights.
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_OTHER_FILES = ["*/*", "consolidated*"]

_WAYS_OUT = """Ways out:
  - connect to the network and run this again;
  - set HF_HOME to a cache that already holds it;
  - set SFT_PROFILE=atlas to use the models that ship with the book;
  - download it elsewhere and give the path of the local folder."""


class ModelLoadError(RuntimeError):
    """A model or its tokenizer cannot be loaded whole. The message says what to do.

    It quotes names and addresses as they were given, and nothing secret of them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact_text(message))


def hub_reachable(timeout: float = 5.0) -> bool:
    """Return whether the Hub answers, asked once, in ``timeout`` seconds at the most.

    The libraries ask five times with growing pauses, for every file: without a network, half a
    minute of waiting before an error that could be given at once.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception:  # whatever the HTTP library of the day calls it
        return False
    return True


def hub_remedy(error: BaseException, name: str, kind: str = "model") -> str | None:
    """Say what to do about ``error``, met while a model or data set was asked of the Hub.

    ``kind`` is ``"model"`` or ``"data set"``. None if neither the Hub's answer nor a connection
    that broke off is behind it.
    """
    from huggingface_hub import constants, errors

    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        if type(cause).__module__.startswith("httpx") or "Consistency check failed" in str(cause):
            return "the download broke off, and what had arrived is not used. Run this again."
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    page = f"{constants.ENDPOINT}/{name if kind == 'model' else f'datasets/{name}'}"
    if isinstance(cause, errors.GatedRepoError):
        return f"it is gated. Accept its terms at {page} and log in with `hf auth login`."
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} knows no {kind} of that name, or it is private. Check the name; "
            "if it is private, log in with `hf auth login`."
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"it has no such revision. Give a branch, tag or commit of {page}/commits/main."
    if isinstance(cause, errors.EntryNotFoundError):
        return f"a file of it is missing from {page}. Try another revision."
    response: Any = cause.response  # type: ignore[attr-defined]
    status, headers = response.status_code, response.headers
    if status in (401, 403):
        return (
            f"{constants.ENDPOINT} answered {status}: your access token is not valid, or may not "
            "read it. Log in again with `hf auth login`, or out with `hf auth logout`."
        )
    if status == 429 or status >= 500:
        wait = headers.get("Retry-After") or "".join(
            re.findall(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
        )
        when = f"in {wait} s" if wait.isdigit() else f"after {wait}" if wait else "later"
        what = "there were too many requests" if status == 429 else "it is out of order"
        return f"{constants.ENDPOINT} answered {status}: {what}. Run this again {when}."
    return None


@contextlib.contextmanager
def hub_offline(offline: bool = True) -> Iterator[None]:
    """Keep the libraries from asking the Hub while the block runs; with False, do nothing."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if offline:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def fetch(source: str, revision: str | None, weights: bool = True) -> Path:
    """Download what the cache lacks of a model, and return its folder, named by the commit.

    Left to themselves, the libraries take a file that they cannot get for one that is not there
    (the chat template, say), and a file of a newer commit together with older ones. What was
    downloaded is used once it was compared with the sums that the Hub lists, if not now then by
    the next call; what others put into the cache is taken as it is.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = not hub_reachable()  # else its silence would be waited for, file by file
    compared = _compared(source)
    try:
        if not offline:
            _note(source, compared)  # before the first byte, for the process may be killed
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*_SMALL_FILES, *(["*.safetensors"] if weights else [])],
                ignore_patterns=_OTHER_FILES,
                local_files_only=offline,
            )
        )
        new = sorted(_cached(source, folder.name) - compared)
        if new and offline:
            raise ConnectionError(f"not compared yet with the Hub's sums: {', '.join(new)}")
        checked = HfApi().verify_repo_checksums(source, revision=folder.name) if new else None
    except Exception as error:
        raise load_error(source, False, offline, error) from error
    finally:
        _settle(source, compared)
    if checked and checked.mismatches:
        names = ", ".join(file["path"] for file in checked.mismatches)
        for file in checked.mismatches:
            path = folder / file["path"]
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise ModelLoadError(
            f"Cannot load the model {source!r}: {names} arrived damaged, for the sum is another "
            f"than {constants.ENDPOINT} lists for commit {folder.name}. The copy was deleted; run "
            "this again to download it anew."
        )
    _settle(source, compared | set(new))
    if weights and not any(folder.glob("*.safetensors")):
        if offline:
            raise load_error(source, False, True, FileNotFoundError(f"no weights in {folder}"))
        raise ModelLoadError(
            f"The model {source!r} offers no weights as safetensors at commit {folder.name}. Other "
            "formats can run any code that they contain, so they are not read. Name a revision or "
            "a copy that has model.safetensors."
        )
    return folder


def _cache_folder(source: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "models--" + source.replace("/", "--"))


def _cached(source: str, commit: str = "*") -> set[str]:
    files = _cache_folder(source).glob(f"snapshots/{commit}/*")
    return {f"{path.parent.name}/{path.name}" for path in files if path.is_file()}


# What was compared stands in a note beside the copies, as long as there is one that was not.


def _ledger(source: str) -> Path:
    return _cache_folder(source) / ".compared.json"


def _compared(source: str) -> set[str]:
    try:
        return set(json.loads(_ledger(source).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return _cached(source)
    except (OSError, ValueError, TypeError):
        return set()


def _note(source: str, compared: set[str]) -> None:
    with contextlib.suppress(OSError):  # where nothing can be written, nothing arrives either
        _cache_folder(source).mkdir(parents=True, exist_ok=True)
        write_whole(_ledger(source), json.dumps(sorted(compared)))


def _settle(source: str, compared: set[str]) -> None:
    if _cached(source) - compared:
        return _note(source, compared)
    with contextlib.suppress(OSError):
        _ledger(source).unlink(missing_ok=True)
        _cache_folder(source).rmdir()  # succeeds where no such model was found


@contextlib.contextmanager
def explained(source: str, commit: str | None = None) -> Iterator[None]:
    """Raise `load_error` in place of what a library raises in the block, which loads a model.

    ``commit`` is that of a copy from the Hub.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        raise load_error(source, True, True, error, commit) from error


def load_error(
    source: str, local: bool, offline: bool, error: Exception, commit: str | None = None
) -> ModelLoadError:
    """The error to raise for one of the libraries', with what to do about it."""
    reason = f"{type(error).__name__}: {str(error).strip()}"
    if local and commit is not None:
        return ModelLoadError(
            f"Cannot load the model {source!r} from its copy at commit {commit}. A file in it is "
            "damaged, missing, or of a kind that transformers does not know without the model's "
            f"own code, which is never run. To download it anew, delete {_cache_folder(source)}."
            f"\n{reason}"
        )
    if local:
        return ModelLoadError(
            f"Cannot load the model in {source!r}. A file in it is damaged, incomplete or of a "
            f"kind that transformers does not know; save or copy the model again.\n{reason}"
        )
    if offline:
        from huggingface_hub import constants

        return ModelLoadError(
            f"Cannot load the model {source!r}: it is no local folder, it is not whole in the "
            f"cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot be reached.\n"
            f"{_WAYS_OUT}\n{reason}"
        )
    if remedy := hub_remedy(error, source):
        return ModelLoadError(f"Cannot load the model {source!r}: {remedy}\n{reason}")
    return ModelLoadError(
        f"Cannot load the model {source!r} from the Hub. Check its name and, if it is gated, "
        "accept its terms and log in with `hf auth login`; it must offer safetensors weights and "
        f"need no code of its own.\n{reason}"
    )
