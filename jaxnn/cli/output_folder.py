"""The output folder of a run: its files appear together, when the run ends."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxnn.cli.terminal import CommandError
from jaxnn.files import cure, lock

STOPPED, _UNFINISHED = "stopped-", ".unfinished-"  # prefixes of names


class OutputFolder:
    """Collects the files of a run in a hidden folder, and moves them into the output folder when the run ends.

    A run that fails leaves no files, and does not change an earlier result.
    """

    NAMES = ("metrics.jsonl", "params.npz", "curves.png", "confusion.png", "filters.png")

    def __init__(self, folder: Path) -> None:
        self.folder, self.new = folder, not folder.exists()
        names = [f"{start}{name}" for start in ("", STOPPED) for name in self.NAMES]
        occupied = [name for name in names if (folder / name).is_dir()]
        if occupied:
            raise CommandError(
                f"{str(folder / occupied[0])!r} is a folder, in the place of a file to write; choose another --output"
            )
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
            clear(folder)
            self.staged, self._unlock = _locked_folder(folder)

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staged, ignore_errors=True)
        self._unlock()
        if self.new:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only if it is empty

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the disk into one that names the folder and the cure."""
        try:
            yield
        except OSError as error:
            reason = f"cannot write to the output folder {str(self.folder)!r} ({error.strerror})"
            raise CommandError(f"{reason}; {cure(error)} with --output") from error

    def finish(self, prefix: str = "") -> None:
        """Move the collected files into the output folder, with `prefix` before their names."""
        with self.writing():
            for name in self.NAMES:
                if (self.staged / name).exists():
                    os.replace(self.staged / name, self.folder / f"{prefix}{name}")
                elif prefix:  # left by an earlier stop, of another training
                    (self.folder / f"{prefix}{name}").unlink(missing_ok=True)


def _locked_folder(within: Path) -> tuple[Path, Callable[[], None]]:
    """Make a hidden folder and lock it, so that `clear` keeps it; return it with the function that unlocks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=within))
        try:
            if (unlock := lock(folder)) is not None:
                return folder, unlock
        except FileNotFoundError:  # another run cleared it before it was locked
            continue
        except OSError:  # this file system has no locks
            return folder, lambda: None


def clear(folder: Path) -> None:
    """Remove the hidden folders of runs that were killed."""
    with contextlib.suppress(FileNotFoundError):  # another process of the run has removed the folder
        for left in folder.glob(f"{_UNFINISHED}*"):
            with contextlib.suppress(OSError):
                if (unlock := lock(left)) is not None:
                    shutil.rmtree(left, ignore_errors=True)
                    unlock()
