"""A test split for data that have none: the same images for every command, kept out of everything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastnas import data
from fastnas.data.folder import FolderSource
from fastnas.data.split import kept_for_test, share_of_test
from fastnas.errors import UserError

COUNTS = {"cat": 10, "dog": 7, "ox": 3}


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for name, count in COUNTS.items():
        (tmp_path / "pets" / name / "more").mkdir(parents=True)
        for number in range(count):
            folder = tmp_path / "pets" / name / ("more" if number % 2 else "")
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pets"


def files(root: Path, split: str, **how: object) -> set[str]:
    source = data.open(f"folder:{root}", split, **how)  # type: ignore[arg-type]
    assert isinstance(source, FolderSource)
    return {path.relative_to(root).as_posix() for path in source.files}


def test_both_parts_hold_all_images_once_and_every_class(root: Path) -> None:
    train, test = (data.open(f"folder:{root}", split, test_share=0.2) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [2, 1, 1]
    assert np.bincount(train.labels).tolist() == [8, 6, 2]
    assert (train.kept_for_test, test.kept_for_test) == (4, 0)
    assert train.test_share == test.test_share == 0.2
    trained, tested = (files(root, split, test_share=0.2) for split in ("train", "test"))
    assert not trained & tested
    assert trained | tested == files(root, "train")
    assert test.statistics() == train.statistics() != data.open(f"folder:{root}").statistics()


def test_the_images_do_not_depend_on_what_else_is_asked(root: Path, tmp_path: Path) -> None:
    tested = files(root, "test", test_share=0.2)
    assert files(root, "test", test_share=0.2, image_size=4) == tested
    assert not files(root, "train", test_share=0.2, limit=5) & tested
    shutil.copytree(root, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere", "test", test_share=0.2) == tested
    broken = next(path for path in sorted(files(root, "train", test_share=0.2)) if path.startswith("cat"))
    (root / broken).write_bytes(b"no image")
    assert files(root, "test", test_share=0.2, skip_unreadable=True) == tested
    assert files(root, "train", test_share=0.2, skip_unreadable=True) | tested == files(
        root, "train", skip_unreadable=True
    )


def test_a_file_that_is_added_moves_at_most_one_other() -> None:
    names = [f"{number}.png".encode() for number in range(100)]
    before = {name for name, tested in zip(names, kept_for_test(names, 0.2, "x"), strict=True) if tested}
    more = [*names, b"new.png"]
    after = {name for name, tested in zip(more, kept_for_test(more, 0.2, "x"), strict=True) if tested}
    assert len(before - after) <= 1


def test_a_share_is_not_the_first_files(root: Path) -> None:
    """Names often count up with time or place; the split must not follow them."""
    names = [f"{number:04}.png".encode() for number in range(400)]
    places = np.flatnonzero(kept_for_test(names, 0.25, "x"))
    assert len(places) == 100
    assert 150 < places.mean() < 250


def test_data_with_a_test_split_keep_it(root: Path) -> None:
    shutil.copytree(root, root.parent / "divided" / "train")
    shutil.copytree(root, root.parent / "divided" / "val")
    for spec in (f"folder:{root.parent / 'divided'}", "digits"):
        train, with_share = data.open(spec), data.open(spec, test_share=0.2)
        assert len(with_share) == len(train)
        assert with_share.test_share is None
        assert with_share.kept_for_test == 0


def test_a_folder_with_a_training_split_alone_is_divided(root: Path) -> None:
    shutil.move(root, root.parent / "half" / "train")
    spec = f"folder:{root.parent / 'half'}"
    assert len(data.open(spec, "test", test_share=0.2)) == 4
    with pytest.raises(UserError, match="the test split needs the subfolder test"):
        data.open(spec, "test")


def test_arrays_are_divided_by_their_content(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)  # [N, H, W, C]
    labels = generator.permutation(np.arange(40) % 2)  # [N]
    order = generator.permutation(40)  # [N]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=images[order], labels=labels[order])
    sets = []
    for name in ("a", "b"):
        train, test = (data.open(f"npz:{tmp_path / name}.npz", split, test_share=0.25) for split in ("train", "test"))
        assert np.bincount(test.labels).tolist() == [5, 5]
        assert (len(train), train.kept_for_test) == (30, 10)
        sets.append({image.tobytes() for image in test.images()})
        assert not sets[-1] & {image.tobytes() for image in train.images()}
    assert sets[0] == sets[1]


def test_a_class_too_small_is_named(root: Path) -> None:
    for number in (0, 2):
        (root / "ox" / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"class 'ox' has 1 image, of which the test takes 1.*--test none"):
        data.open(f"folder:{root}", test_share=0.2)


def test_the_option() -> None:
    assert [share_of_test(text) for text in ("same", "0.3", "none", "folder:x")] == [0.2, 0.3, None, None]
    for text in ("0", "1", "-0.2", "nan", "20"):
        with pytest.raises(UserError, match=f"test is {text}, expected a share above 0 and below 1"):
            share_of_test(text)
    with pytest.raises(UserError, match=r"test_share is 1.5; give a share"):
        data.open("digits", test_share=1.5)
