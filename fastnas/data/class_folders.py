"""How a tree of image folders is read: which split, which classes, and which files are images of each."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from fastnas.data.image import EXTENSIONS
from fastnas.errors import UserError

# What splits are called, in any case; the first test folder that exists is the one that is read.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "eval", "dev")
VAL_FOLDERS = TEST_FOLDERS[2:]
SERVICE_FOLDERS = frozenset({"@eadir", "$recycle.bin", "system volume information"})  # of file servers and Windows


def split_folder(root: Path, split: str, divisible: bool = False) -> tuple[Path, bool]:
    """ROOT itself, or its subfolder of the split where ROOT is divided into splits; and whether there is no test split,
    so that this folder holds the images of both.

    Args:
        root: the folder.
        split: "train" or "test", or "val": the folder val, even where it is what "test" stands for.
        divisible: whether the test split may be a part of the training images.

    Raises:
        UserError: the split is missing, or ROOT is not a folder.
    """
    folders = {folder.name.casefold(): folder for folder in subfolders(root)}
    trains, tests = ([folders[name] for name in names if name in folders] for names in (TRAIN_FOLDERS, TEST_FOLDERS))
    if split == "val":
        vals = [folders[name] for name in VAL_FOLDERS if name in folders]
        if not (trains and vals):
            raise UserError(f"{root} has no images of its own for α: they need the subfolder val beside train")
        return vals[0], False
    # A class may be called "train", so that name alone does not make a split, unless there is nothing else.
    divided = (trains and tests) or (folders and set(folders) <= {*TRAIN_FOLDERS, *TEST_FOLDERS})
    if not divided:
        if split == "test" and not divisible:
            raise UserError(f"{root} has no test images; put them in {root / 'test'}, the others in {root / 'train'}")
        return root, True
    wanted = trains if split == "train" or (divisible and not tests) else tests
    if not wanted:
        expected = "train" if split == "train" else "test (or val)"
        found = ", ".join(sorted(folder.name for folder in folders.values()))
        raise UserError(f"{root} has only {found}; the {split} split needs the subfolder {expected}")
    return wanted[0], not tests


def classes_of(base: Path) -> dict[str, Path]:
    """The folder of each class by its name, sorted by name as it is written on disk.

    Names are in Unicode's composed form (NFC), so that a folder from a Mac and one from Linux are the same class; bytes
    that are not UTF-8 are written as `\\xNN`.

    Raises:
        UserError: no class folder, a single one that holds the classes itself, or two of the same name.
    """
    folders = subfolders(base)
    if not folders:
        raise UserError(f"{base} has no class folders; put the images of each class in a subfolder named after it")
    if len(folders) == 1 and len(inner := [each for each in subfolders(folders[0]) if _holds_images(each)]) > 1:
        raise UserError(
            f"{base} holds the single folder {folders[0].name}, whose {len(inner)} subfolders look like classes; "
            f"give folder:{folders[0]}"
        )
    classes: dict[str, Path] = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8", "backslashreplace"))
        if name in classes:
            raise UserError(
                f"{base} has two folders called {name!r}, which differ in their Unicode normalisation only; merge them"
            )
        classes[name] = folder
    return classes


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, sorted, without hidden and service folders. UserError where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not _is_hidden(path.name) and path.is_dir())
    except OSError as error:
        raise unreadable_folder(folder, error) from error


class ImageFiles:
    """Finds the image files of one class after another.

    No file counts twice: a link to a folder is followed once, and only where it leads out of the tree.

    Args:
        base: the folder of all classes.
        left_out: collects what cannot be read below a class folder; None to raise instead.
    """

    def __init__(self, base: Path, left_out: list[str] | None) -> None:
        self._base = base.resolve()
        self._left_out = left_out
        self._seen: dict[tuple[int, int], Path] = {}  # device and inode of every folder that was read

    def of(self, folder: Path) -> list[Path]:
        """The image files in a class folder and below, sorted.

        Raises:
            UserError: there is none, a folder cannot be read, or a link would count images twice.
        """
        files: list[Path] = []
        waiting = [folder]  # a stack: a tree may be deeper than Python's calls
        while waiting:
            waiting += self._collect(waiting.pop(), files, folder)
        if not files:
            raise UserError(
                f"the class folder {folder} holds no image ({', '.join(sorted(EXTENSIONS)[:12])}, …); add images or "
                "remove the folder"
            )
        return sorted(files)

    def _collect(self, folder: Path, files: list[Path], class_folder: Path) -> list[Path]:
        """Adds the image files of one folder; returns the folders below it, the last one first."""
        try:
            self._check_new(folder)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            below = [Path(entry.path) for entry in found if not _is_hidden(entry.name) and entry.is_dir()]
            files += [Path(entry.path) for entry in found if _is_image(entry)]
        except OSError as error:
            problem = unreadable_folder(folder, error)
            if self._left_out is None or folder == class_folder:
                raise problem from error
            self._left_out.append(str(problem))
            return []
        return below[::-1]

    def _check_new(self, folder: Path) -> None:
        state = folder.stat()
        before = self._seen.setdefault((state.st_dev, state.st_ino), folder)
        if folder.is_symlink():
            target = folder.resolve()
            if before is not folder or target.is_relative_to(self._base) or self._base.is_relative_to(target):
                raise UserError(
                    f"the link {folder} leads to {target}, whose images would count twice; remove the link, or put the "
                    "images there themselves"
                )
        elif before is not folder:
            raise UserError(
                f"{folder} and {before} are the same folder, whose images would count twice; remove one of the links"
            )


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__")) or name.casefold() in SERVICE_FOLDERS


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to one, with the extension of an image. A pipe would block its reader."""
    if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
        return False
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_image(entry) for entry in entries)
    except OSError:
        return False


def unreadable_folder(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot read the folder {folder}: {error.strerror}; give a readable folder of images")
