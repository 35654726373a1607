"""Public files such as pretrained weights: given by the user, or downloaded once; always verified."""

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from alight.runtime.cache_folder import cache_folder
from alight.runtime.console import log, progress_bar
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash

DOWNLOAD = "download"  # in place of a path
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PublicFile:
    """A public file with a known checksum.

    Attributes:
        what: a description for messages.
        name: of the file in the cache folder.
        url: of the download.
        sha256: its SHA-256 in hexadecimal digits, or the beginning of it.
    """

    what: str
    name: str
    url: str
    sha256: str

    @property
    def cached(self) -> Path:
        """The path in the cache, of the downloaded file or one that was put there by hand."""
        return cache_folder() / "weights" / self.name

    def locate(self, given: str | Path | None = None) -> Path:
        """Find or download the file, and verify its checksum.

        Args:
            given: a local path; None or `download` = take it from the cache folder, or else the network.

        Raises:
            InputError: if it does not exist, cannot be downloaded, or has another checksum.
        """
        if given is None or str(given) == DOWNLOAD:
            path = self.cached
            if not path.is_file():
                self._download(path)
        else:
            path = Path(given)
            if not path.is_file():
                raise InputError(
                    f"There is no file {path} with the {self.what}. Get it from {self.url} and give its path, or give "
                    f"'{DOWNLOAD}' to download it."
                )
        if not (found := file_hash(path)).startswith(self.sha256):
            raise InputError(
                f"{path} is not the file with the {self.what}: its SHA-256 begins {found[:8]} instead of "
                f"{self.sha256[:8]}, so it is another file, or damaged. Replace it by the one from {self.url}."
            )
        return path

    def _download(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # other processes wait for the download
                if not path.is_file():
                    log.info("Downloading the %s from %s to %s.", self.what, self.url, path)
                    self._fetch(path)
        except (OSError, HTTPException, ValueError) as error:
            reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
            raise InputError(
                f"The {self.what} could not be downloaded from {self.url} to {path} ({reason}). Download the file on "
                "another machine, then put it there or give its path. ALIGHT_CACHE sets the folder."
            ) from error

    def _fetch(self, path: Path) -> None:
        """Download to a temporary file, and rename it when it is complete and verified."""
        partial, digest = path.with_name(f".{path.name}.partial"), hashlib.sha256()
        try:
            with urllib.request.urlopen(self.url, timeout=_TIMEOUT) as response, partial.open("wb") as file:
                size = int(response.headers.get("Content-Length") or 0)
                with progress_bar(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
                    while block := response.read(_BLOCK):
                        file.write(block)
                        digest.update(block)
                        bar.update(len(block))
                if file.tell() < size:
                    raise ValueError(f"the connection ended after {file.tell():,} of {size:,} bytes")
                if not digest.hexdigest().startswith(self.sha256):
                    raise ValueError(f"SHA-256 begins {digest.hexdigest()[:8]} instead of {self.sha256[:8]}")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
