from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_sources import pixels, write_folder

from fastnas import data
from fastnas.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "animals", {"dog": 3, "cat": 2, "bee": 4})


def test_classes_and_files_are_sorted(root: Path) -> None:
    source = data.open(f"folder:{root}")
    assert source.classes == ("bee", "cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert source.labels.dtype == np.int64
    assert (source.name, source.channels, source.image_size, len(source)) == ("animals", 3, (10, 10), 9)
    assert source.augmentation == data.Augmentation(crop_padding=1, flip=True)
    np.testing.assert_array_equal(source.image(4), pixels(1000))
    np.testing.assert_array_equal(source.image(8), pixels(2))
    np.testing.assert_array_equal(source.images()[5], pixels(1001))


def test_images_are_loaded_once(root: Path) -> None:
    source = data.open(f"folder:{root}")
    assert not source.resident
    before = [source.image(index) for index in range(len(source))]
    images = source.images()
    np.testing.assert_array_equal(images, before)
    for path in root.rglob("*.png"):
        path.unlink()
    assert source.images() is images
    np.testing.assert_array_equal(source.image(3), images[3])
    assert source.resident
    np.testing.assert_array_equal(source.subset([3, 1]).images(), images[[3, 1]])


def test_nested_folders_other_formats_and_other_files(root: Path) -> None:
    (root / "cat" / "kittens" / "2024").mkdir(parents=True)
    for suffix in ("jpg", "JPEG", "bmp", "webp", "gif", "tif"):
        Image.fromarray(pixels(5)).save(root / "cat" / "kittens" / "2024" / f"a.{suffix}")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._0.png").write_text("left behind by a file manager")
    (root / ".hidden").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.md").write_text("about")
    source = data.open(f"folder:{root}")
    assert source.classes == ("bee", "cat", "dog")
    assert (source.labels == 1).sum() == 8
    assert source.images().shape == (15, 10, 10, 3)


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 100, "b": 30}, size=(2, 2))
    source = data.open(f"folder:{tmp_path}")
    expected = [pixels(int(path.stem) + (1000 if path.parent.name == "b" else 0), (2, 2)) for path in source.files]
    np.testing.assert_array_equal(source.images(), expected)


def test_hidden_and_service_folders_are_passed_over_at_every_depth(root: Path) -> None:
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "kittens/.cache"):
        (root / "cat" / name).mkdir(parents=True)
        Image.fromarray(pixels(9)).save(root / "cat" / name / "copy.png")
    assert np.bincount(data.open(f"folder:{root}").labels).tolist() == [4, 2, 3]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "tga", "pnm", "dib", "apng"])
def test_any_extension_of_a_format_that_pillow_reads(root: Path, suffix: str) -> None:
    kind = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "pnm": "PPM", "dib": "DIB", "apng": "PNG"}
    Image.fromarray(pixels(9)).save(root / "cat" / f"another.{suffix}", format=kind[suffix])
    assert np.bincount(data.open(f"folder:{root}").labels).tolist() == [4, 3, 3]


@pytest.mark.parametrize("target", ["..", ".", "../dog", "../../animals"])
def test_a_link_that_would_count_images_twice_is_refused(root: Path, target: str) -> None:
    (root / "cat" / "link").symlink_to(target)
    with pytest.raises(UserError, match=r"the link .*/cat/link leads to .*, whose images would count twice"):
        data.open(f"folder:{root}")


def test_links_out_of_the_tree_are_followed_once(root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "store", {"owls": 5})
    (root / "owl").symlink_to(tmp_path / "store" / "owls")
    source = data.open(f"folder:{root}")
    assert source.classes == ("bee", "cat", "dog", "owl")
    assert np.bincount(source.labels).tolist() == [4, 2, 3, 5]
    (root / "bird").symlink_to(tmp_path / "store" / "owls")
    with pytest.raises(UserError, match="would count twice"):
        data.open(f"folder:{root}")


def test_a_pipe_is_no_image(root: Path) -> None:
    os.mkfifo(root / "cat" / "pipe.png")
    assert np.bincount(data.open(f"folder:{root}").labels).tolist() == [4, 2, 3]


def test_class_names_are_equal_whatever_their_unicode_form(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("test", "NFD")):
        write_folder(tmp_path / split, {unicodedata.normalize(form, "café"): 2, "tea": 2})
    train, test = data.open(f"folder:{tmp_path}"), data.open(f"folder:{tmp_path}", "test")
    assert train.classes == test.classes
    data.check_same_classes(train, test)
    write_folder(tmp_path / "train", {unicodedata.normalize("NFD", "café"): 2})
    with pytest.raises(UserError, match="differ in their Unicode normalisation"):
        data.open(f"folder:{tmp_path}")


def test_class_names_that_are_no_utf8(root: Path) -> None:
    os.rename(root / "cat", os.fsencode(root) + b"/chat-\xe9t\xe9")
    source = data.open(f"folder:{root}")
    assert source.classes == ("bee", "chat-\\xe9t\\xe9", "dog")
    assert len(source.images()) == 9


def test_a_folder_one_level_too_high(root: Path) -> None:
    with pytest.raises(UserError, match="single folder animals, whose 3 subfolders look like classes; give folder:"):
        data.open(f"folder:{root.parent}")


def test_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(data.open("folder:~/animals")) == 9


@pytest.mark.parametrize("train_name", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation", "Testing", "Test", "VAL", "dev", "eval"])
def test_split_folders(tmp_path: Path, train_name: str, test_name: str) -> None:
    write_folder(tmp_path / train_name, {"a": 3, "b": 2})
    write_folder(tmp_path / test_name, {"a": 1, "b": 1})
    train, test = data.open(f"folder:{tmp_path}"), data.open(f"folder:{tmp_path}", "test")
    assert (len(train), len(test)) == (5, 2)
    data.check_same_classes(train, test)
    assert test.statistics() == train.statistics()


def test_test_goes_before_val(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        write_folder(tmp_path / name, {"a": count, "b": count})
    assert len(data.open(f"folder:{tmp_path}", "test")) == 2


@pytest.mark.parametrize(("names", "count"), [(("train", "val"), 4), (("Training", "Validation", "test"), 4)])
def test_the_folder_val_can_be_opened_itself(tmp_path: Path, names: tuple[str, ...], count: int) -> None:
    for name in names:
        write_folder(tmp_path / name, {"a": 2, "b": 2} if name.casefold().startswith("val") else {"a": 3, "b": 3})
    val = data.open(f"folder:{tmp_path}", "val")
    assert (len(val), val.base.name) == (count, names[1])
    assert val.statistics() == data.open(f"folder:{tmp_path}").statistics()


def test_other_images_have_no_folder_val(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_folder(tmp_path / name, {"a": 1, "b": 1})
    with pytest.raises(UserError, match="no images of its own for α: they need the subfolder val beside train"):
        data.open(f"folder:{tmp_path}", "val")
    with pytest.raises(UserError, match="digits has no folder val; only folder:ROOT and imagenet:ROOT may have one"):
        data.open("digits", "val")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, {"car": 1, "train": 1})
    assert data.open(f"folder:{tmp_path}").classes == ("car", "train")


def test_plain_folder_has_no_test_images(root: Path) -> None:
    with pytest.raises(UserError, match=f"{root} has no test images; put them in {root}/test"):
        data.open(f"folder:{root}", "test")


@pytest.mark.parametrize(
    ("present", "split", "needs"), [("train", "test", r"test \(or val\)"), ("val", "train", "train")]
)
def test_one_split_is_missing(tmp_path: Path, present: str, split: str, needs: str) -> None:
    write_folder(tmp_path / present, {"a": 1, "b": 1})
    with pytest.raises(
        UserError, match=f"{tmp_path} has only {present}; the {split} split needs the subfolder {needs}"
    ):
        data.open(f"folder:{tmp_path}", split)


def test_statistics_of_a_test_split_need_the_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "test", {"a": 1, "b": 1})
    test = data.open(f"folder:{tmp_path}", "test")
    with pytest.raises(UserError, match="the train split needs"):
        test.statistics()


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot read the folder {tmp_path}/gone: No such file"):
        data.open(f"folder:{tmp_path / 'gone'}")


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cannot read the folder {tmp_path}/file: Not a directory"):
        data.open(f"folder:{tmp_path / 'file'}")


def test_unreadable_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(list_folder, refused: Path):
        def listed(path):
            if Path(path) == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return list_folder(path)

        return listed

    for refused in (root, root / "cat"):
        with monkeypatch.context() as patch:  # not by access rights, which do not bind a superuser
            patch.setattr(os, "listdir", guarded(os.listdir, refused))
            patch.setattr(os, "scandir", guarded(os.scandir, refused))
            with pytest.raises(UserError, match=f"cannot read the folder {refused}: Permission denied"):
                data.open(f"folder:{root}")


def test_no_class_folders(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"{tmp_path} has no class folders"):
        data.open(f"folder:{tmp_path}")


def test_empty_class_folder(root: Path) -> None:
    (root / "ant").mkdir()
    (root / "ant" / "notes.txt").write_text("none yet")
    with pytest.raises(UserError, match=f"the class folder {root}/ant holds no image"):
        data.open(f"folder:{root}")


def test_text_file_named_jpg(root: Path) -> None:
    (root / "cat" / "9.jpg").write_text("hello")
    for image_size in (None, 16):
        with pytest.raises(UserError, match=f"cannot read the image {root}/cat/9.jpg: it is not an image"):
            data.open(f"folder:{root}", image_size=image_size)


def test_different_sizes(root: Path) -> None:
    Image.fromarray(pixels(7, (8, 12))).save(root / "cat" / "9.png")
    Image.fromarray(pixels(7, (9, 12))).save(root / "dog" / "9.png")
    expected = rf"{root}/cat/9.png is 8x12 \(height x width\), {root}/bee/0.png 10x10; pass image_size \(--image-size"
    with pytest.raises(UserError, match=expected):
        data.open(f"folder:{root}")
    source = data.open(f"folder:{root}", image_size=6)
    assert source.image_size == (6, 6)
    assert source.images().shape == (11, 6, 6, 3)


def test_a_file_that_changed_its_size_later(root: Path) -> None:
    source = data.open(f"folder:{root}")
    Image.fromarray(pixels(7, (8, 12))).save(root / "cat" / "0.png")
    with pytest.raises(UserError, match=rf"{root}/cat/0.png is 8x12 .*, the others 10x10"):
        source.images()


def test_one_size_need_not_be_square(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2, "b": 2}, size=(16, 32))
    source = data.open(f"folder:{tmp_path}")
    assert source.image_size == (16, 32)
    assert source.augmentation.crop_padding == 2


def test_statistics_do_not_need_resident_images(root: Path) -> None:
    source = data.open(f"folder:{root}")
    measured = source.statistics()
    assert not source.resident
    again = data.open(f"folder:{root}")
    again.images()
    assert again.statistics() == measured
