"""Prepared sets: a tiny one written here, real MNIST and CIFAR-10 where prepared."""

import io
import json
import shlex
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from robjax import data
from robjax.data.prepare import prepare

SIZE, SHAPE = 23, (6, 5, 3)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels():
    return np.random.default_rng(0).integers(0, 256, (SIZE, *SHAPE), dtype=np.uint8)


def write_records(path):
    """Images in class order, as TFDS stores a set whose shuffling is disabled."""
    pytest.importorskip("array_record", reason="ArrayRecord is for Linux only")
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    example_type: Any = tf_example_pb2
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index, image in enumerate(pixels()):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        example = example_type.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["label"].int64_list.value.append(index // 6)
        writer.write(example.SerializeToString())
    writer.close()


def write_metadata(folder, file_format, label="classLabel"):
    folder.mkdir(parents=True)
    name, version = folder.parts[-2:]
    kinds = "tensorflow_datasets.core.features"
    dimensions = {"dimensions": [str(n) for n in SHAPE]}
    labels = {
        "classLabel": {
            "pythonClassName": f"{kinds}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "4"},
        },
        "text": {"pythonClassName": f"{kinds}.text_feature.Text", "text": {}},
    }
    features = {
        "image": {
            "pythonClassName": f"{kinds}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": dimensions},
        },
        "label": labels[label],
    }
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": [str(SIZE)], "filepathTemplate": template}
    info = {"name": name, "version": version, "fileFormat": file_format}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [split]}))
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{kinds}.features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    write_metadata(folder, "array_record")
    write_records(folder / "tiny-train.array_record-00000-of-00001")
    return tmp_path


def test_reads_every_example_once_and_not_in_class_order(tiny):
    train = data.load("tiny", "train", data_dir=tiny)
    assert (train.num_classes, train.scale, train.name) == (4, 255.0, "tiny")
    assert train.images.shape == (SIZE, *SHAPE) and train.images.dtype == np.uint8
    expected = {image.tobytes(): i // 6 for i, image in enumerate(pixels())}
    read = zip(train.images, train.labels, strict=True)
    assert {image.tobytes(): label for image, label in read} == expected
    # A class-sorted set changes label 3 times, a random order about 17 times.
    assert (np.diff(train.labels) != 0).sum() > 9
    again = data.load("tiny", "train", data_dir=tiny)
    np.testing.assert_array_equal(again.images, train.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_what_it_loads(tiny, workers):
    loaded = data.load("tiny", "train", data_dir=tiny)
    streamed = data.load("tiny", "train", data_dir=tiny, workers=workers)
    assert isinstance(streamed.images, data.StoredImages)
    np.testing.assert_array_equal(streamed.labels, loaded.labels)
    rows = data.batch_indices(SIZE, 5, seed=0, epoch=0)
    with streamed.images.batches(rows) as batches:
        np.testing.assert_array_equal(list(batches), loaded.images[rows])
    halved = data.load("tiny", "train", data_dir=tiny, workers=workers, size=(3, 2))
    assert halved.images[:4].shape == (4, 3, 2, 3)


def test_folder_from_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert len(data.load("tiny:1.0.0", "train").labels) == SIZE


def test_unknown_split(tiny):
    with pytest.raises(ValueError, match="split of tiny must be one of train, got 'x'"):
        data.load("tiny", "x", data_dir=tiny)


@pytest.mark.parametrize("name", ["mnist", "no_such_set", "tiny:2.0.0", "not a name"])
def test_what_is_not_there_says_what_to_run(tiny, name):
    with pytest.raises(data.NotPreparedError) as error:
        data.load(name, "train", data_dir=tiny)
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert "(there: tiny; embedded: digits)" in message
    assert "pip install 'robjax[prepare]'" in message
    command = f"python -m robjax.data.prepare {shlex.quote(name)} --data-dir {tiny}"
    assert command in message


def test_tfrecord_only_says_what_to_run(tmp_path):
    write_metadata(tmp_path / "old" / "1.0.0", "tfrecord")
    with pytest.raises(data.NotPreparedError, match=r"as tfrecord only") as error:
        data.load("old", "train", data_dir=tmp_path)
    assert "python -m robjax.data.prepare old" in str(error.value)


def test_sets_without_class_labels_are_refused(tmp_path):
    write_metadata(tmp_path / "captions" / "1.0.0", "array_record", label="text")
    with pytest.raises(ValueError, match="'captions' is not a set of uint8 images"):
        data.load("captions", "train", data_dir=tmp_path)


def test_import_needs_no_tfds():
    code = (
        "import sys, robjax.data;"
        "print([m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_preparing_without_tensorflow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"pip install 'robjax\[prepare\]'"):
        prepare("mnist")


def load_or_skip(name, split):
    try:
        return data.load(name, split)
    except data.NotPreparedError as error:
        pytest.skip(f"{name} is not prepared: {error}")


def test_mnist_test_split():
    test = load_or_skip("mnist", "test")
    assert test.images.shape == (10000, 28, 28, 1)
    # The published class counts of the MNIST test set.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(test.labels), counts)
    # The published mean and standard deviation of MNIST pixels are .1307 and .3081
    # (training set).
    pixels = test.images / 255
    np.testing.assert_allclose(
        [pixels.mean(), pixels.std()], [0.1307, 0.3081], rtol=0.02
    )


def test_cifar10_test_split():
    test = load_or_skip("cifar10", "test")
    assert test.images.shape == (10000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)
    # The published channel means of the training set.
    means = (test.images / 255).mean((0, 1, 2))
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], rtol=0.02)
