"""The files of a run, in the output folder: all of them when it ends, and none before."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxnn.cli.terminal import Failure
from jaxnn.files import cure, lock

STOPPED, _UNFINISHED = "stopped-", ".unfinished-"  # the beginnings of files' names


class OutputFolder:
    """The files of a run: gathered in a hidden folder, and moved into the output folder together when it ends.

    A run that fails leaves nothing behind and an earlier result as it was.
    """

    NAMES = ("metrics.jsonl", "params.npz", "curves.png", "confusion.png", "filters.png")

    def __init__(self, folder: Path) -> None:
        self.folder, self.new = folder, not folder.exists()
        names = [f"{start}{name}" for start in ("", STOPPED) for name in self.NAMES]
        occupied = [name for name in names if (folder / name).is_dir()]
        if occupied:
            raise Failure(f"{str(folder / occupied[0])!r} is a folder and in the way; choose another --output")
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            clear(folder)
            self.staged, self._let_go = _take_folder(folder)

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staged, ignore_errors=True)
        self._let_go()
        if self.new:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only if it is empty

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Name the folder and the cure when something cannot be written."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write to the output folder {str(self.folder)!r} ({error.strerror})"
            raise Failure(f"{reason}; {cure(error)} with --output") from error

    def finish(self, prefix: str = "") -> None:
        """Move the gathered files into the folder."""
        with self.writing():
            for name in self.NAMES:
                if (self.staged / name).exists():
                    os.replace(self.staged / name, self.folder / f"{prefix}{name}")
                elif prefix:  # of an earlier stop: not of the same training
                    (self.folder / f"{prefix}{name}").unlink(missing_ok=True)


def _take_folder(within: Path) -> tuple[Path, Callable[[], None]]:
    """Make a hidden folder that others do not clear away; return it, and what lets go of it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=within))
        try:
            if (let_go := lock(folder)) is not None:
                return folder, let_go
        except FileNotFoundError:  # cleared away before it was locked
            continue
        except OSError:
            return folder, lambda: None


def clear(folder: Path) -> None:
    """Remove what runs that were killed had gathered in an output folder."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if (let_go := lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                let_go()
