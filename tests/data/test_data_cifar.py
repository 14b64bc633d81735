from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision

from fastnas import data
from fastnas.errors import UserError


def write_cifar(root: Path, dataset: type, files: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes random batches in CIFAR's format and lets torchvision accept their checksums."""
    key = "labels" if dataset is torchvision.datasets.CIFAR10 else "fine_labels"
    classes = 10 if key == "labels" else 100
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sums = {}

    def write(name: str, content: object) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, count in files.items():
        images = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        write(name, {"data": images, key: [(7 * place) % classes for place in range(count)]})
    meta = dataset.meta
    write(meta["filename"], {meta["key"]: [f"name{label}" for label in range(classes)]})
    monkeypatch.setattr(dataset, "meta", {**meta, "md5": sums[meta["filename"]]})
    for attribute in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(dataset, attribute)]
        monkeypatch.setattr(dataset, attribute, listed)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    files = {f"data_batch_{number}": 10 for number in range(1, 6)} | {"test_batch": 20}
    write_cifar(tmp_path, torchvision.datasets.CIFAR10, files, monkeypatch)
    return f"cifar10:{tmp_path}"


def test_cifar10(cifar10: str) -> None:
    train, test = data.open(cifar10), data.open(cifar10, "test")
    assert (len(train), len(test)) == (50, 20)
    assert train.classes == test.classes == tuple(f"name{label}" for label in range(10))
    assert (train.channels, train.image_size, train.name) == (3, (32, 32), "cifar10")
    assert train.labels[:3].tolist() == [0, 7, 4]
    assert train.labels.dtype == np.int64
    assert train.augmentation == data.Augmentation(crop_padding=4, flip=True)
    assert train.statistics() == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert test.statistics() == train.statistics()
    stored = pickle.loads((Path(cifar10.partition(":")[2]) / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    np.testing.assert_array_equal(train.image(1), stored["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, torchvision.datasets.CIFAR100, {"train": 30, "test": 10}, monkeypatch)
    train = data.open(f"cifar100:{tmp_path}")
    assert (len(train), len(train.classes), train.name) == (30, 100, "cifar100")
    assert train.statistics() == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert len(data.open(f"cifar100:{tmp_path}", "test")) == 10


def test_search_split_is_by_index(cifar10: str) -> None:
    train = data.open(cifar10)
    weights, alpha = train.search_split()
    assert weights.tolist() == list(range(25))
    assert alpha.tolist() == list(range(25, 50))
    assert len(train.search_split(0.73)[0]) == 36


def test_search_split_refuses_impossible_portions(cifar10: str) -> None:
    train = data.open(cifar10)
    with pytest.raises(UserError, match="for the weights is 1; give a number above 0"):
        train.search_split(1)
    with pytest.raises(UserError, match=r"a share of 0\.01 of 50 images leaves none for the weights; raise --split"):
        train.search_split(0.01)


def test_limit_keeps_constants_and_split(cifar10: str) -> None:
    train = data.open(cifar10, limit=20)
    assert np.bincount(train.labels).tolist() == [2] * 10
    assert train.statistics()[0][0] == 0.4914
    assert train.search_split()[0].tolist() == list(range(10))


def test_image_size(cifar10: str) -> None:
    train = data.open(cifar10, image_size=64)
    assert train.images().shape == (50, 64, 64, 3)
    assert train.augmentation.crop_padding == 8


def test_missing_files_mention_the_download(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=rf"cifar10 is not in {folder}: .*cifar-10-batches-py.*download=True"):
            data.open(f"cifar10:{folder}")
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_not_unpickled(cifar10: str) -> None:
    root = Path(cifar10.partition(":")[2])
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(UserError, match="missing or incomplete"):
        data.open(cifar10)


def test_download_only_on_request_and_its_failure_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_network(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(UserError):
        data.open(f"cifar10:{tmp_path}")
    assert asked == []
    with pytest.raises(UserError, match=rf"cannot download cifar10 to {tmp_path}: .*no network"):
        data.open(f"cifar10:{tmp_path}", download=True)
    assert len(asked) == 1
