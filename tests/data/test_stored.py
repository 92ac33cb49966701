"""Images on the disk: read as an array, and in batches by any number of processes."""

import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from robjax import data
from robjax.data.decoder import feature
from robjax.runs.provenance import checksum, describe

CLASSES = {"zebra": 4, "Ant": 3, "bee": 4}
IN_ORDER = ["Ant", "bee", "zebra"]


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The folder, its images in the order of classes and names, and their labels."""
    root = tmp_path_factory.mktemp("photos")
    pixels = noise(sum(CLASSES.values()), 6, 5, 3)
    labels = [k for k, name in enumerate(IN_ORDER) for _ in range(CLASSES[name])]
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        save(root / IN_ORDER[label] / f"{number:02d}.png", image)
    (root / "bee" / ".hidden").write_text("no image")
    return root, pixels, np.array(labels)


def test_folder_reads_as_an_array(photos):
    root, pixels, labels = photos
    listing = data.folders(root)
    assert listing.classes == ("Ant", "bee", "zebra")
    stored = listing.stream(workers=0)
    assert "11 images 6×5×3 in 3 classes, on the disk" in repr(stored)
    assert (stored.labels == labels).all() and stored.scale == 255
    images = stored.images
    assert isinstance(images, data.StoredImages)
    assert images.shape == pixels.shape and len(images) == len(pixels)
    for rows in (
        3,
        -1,
        slice(2, 9, 3),
        np.array([[4, 4], [10, 0]]),
        pixels[:, 0, 0, 0] > 9,
    ):
        np.testing.assert_array_equal(images[rows], pixels[rows])
    np.testing.assert_array_equal(np.asarray(images), pixels)
    assert (images.min(), images.max()) == (pixels.min(), pixels.max())
    np.testing.assert_array_equal(data.to_float(images, 5), data.to_float(pixels, 5))
    memory = data.from_arrays(pixels, labels)
    for part, expected in zip(
        data.split(stored, 4), data.split(memory, 4), strict=True
    ):
        assert isinstance(part.images, data.StoredImages)
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_whoever_decodes_them(photos, workers):
    root, pixels, labels = photos
    images = data.folders(root).stream(workers=workers).images
    rows = np.concatenate(
        [data.batch_indices(len(labels), 4, seed=1, epoch=epoch) for epoch in range(4)]
    )
    with images.batches(rows) as batches:
        seen = [next(batches) for _ in range(3)]
        state = batches.get_state()
        seen += list(batches)
        processes = children()
        assert len(processes) == workers
        for process in processes:
            maps = pathlib.Path(f"/proc/{process}/maps").read_text()
            assert "_imaging" in maps and "jaxlib" not in maps and "numpy" not in maps
        batches.set_state(state)
        again = list(batches)
    assert not children()
    np.testing.assert_array_equal(seen, pixels[rows])
    np.testing.assert_array_equal(again, pixels[rows[3:]])
    with images.batches(rows, start=7) as batches:
        np.testing.assert_array_equal(list(batches), pixels[rows[7:]])


def children():
    """The processes that decode; on systems that list them."""
    tasks = pathlib.Path(f"/proc/{os.getpid()}/task")
    if not tasks.exists():
        pytest.skip("needs /proc")
    listed = [task.read_text().split() for task in tasks.glob("*/children")]
    return [
        int(process)
        for processes in listed
        for process in processes
        if b"decoder.py" in pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    ]


def test_resizing_and_cropping(tmp_path):
    wide, tall = noise(4, 12, 3), noise(8, 4, 3, seed=1)
    save(tmp_path / "a" / "wide.png", wide)
    save(tmp_path / "b" / "tall.png", tall)
    listing = data.folders(tmp_path)
    # the largest central square, then half of it: no pixel is mixed with another
    whole = listing.stream(size=(4, 4), crop=1.0, workers=0).images
    np.testing.assert_array_equal(whole, [wide[:, 4:8], tall[2:6]])
    half = listing.stream(size=(2, 2), crop=0.5, workers=0).images
    np.testing.assert_array_equal(half, [wide[1:3, 5:7], tall[3:5, 1:3]])
    stretched = listing.stream(size=(5, 7), workers=0).images
    np.testing.assert_array_equal(stretched, listing.read(size=(5, 7)).images)


def test_channels_are_converted_where_they_are_given(tmp_path):
    pixels = noise(2, 4, 4, 3)
    save(tmp_path / "a" / "0.png", pixels[0])
    save(tmp_path / "b" / "0.png", pixels[1], "L")
    listing = data.folders(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"one of L, RGB, RGBA, but .*a/0.png is RGB and .*b/0.png is L: give",
    ):
        listing.stream()
    grey = listing.stream(channels=1, workers=0).images
    assert grey.shape == (2, 4, 4, 1)
    luma = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey[:][..., 0], luma, atol=1)
    colour = listing.stream(channels=3, workers=0).images[1]
    assert (colour == grey[1]).all()
    for mode, wrong in [("P", "is P: give channels=3"), ("I;16", "is I;16")]:
        image = Image.new(mode, (4, 4))
        image.save(tmp_path / "b" / "0.png")
        with pytest.raises(ValueError, match=f"b/0.png {wrong}"):
            listing.stream()
    assert listing.stream(channels=3).images.shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match=r"8 bits a channel, .*b/0.png has more"):
        listing.stream(channels=3, workers=0).images[1]


def test_what_is_wrong_is_named(tmp_path, photos):
    root, _, _ = photos
    listing = data.folders(root)
    for options, message in [
        ({"size": (4,)}, r"size must be \(height, width\), got \(4,\)"),
        ({"size": (4, 0)}, "size must be a whole number of at least 1, got 0"),
        ({"crop": 0.5}, "crop must come with size"),
        ({"size": (4, 4), "crop": 1.5}, "crop must be a share above 0 .* got 1.5"),
        ({"channels": 2}, r"channels must be one of \[1, 3, 4\], got 2"),
        ({"workers": -1}, "workers must be a whole number of at least 0, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            listing.stream(**options)
    with pytest.raises(ValueError, match="workers, size and crop must be None for dig"):
        data.load("digits", "train", workers=0)
    save(tmp_path / "a" / "0.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"two classes or more, .* has \('a',\)"):
        data.folders(tmp_path).stream()
    save(tmp_path / "b" / "0.png", noise(4, 5, 3))
    with pytest.raises(ValueError, match=r"a/0.png is 4×4 and .*b/0.png is 4×5: give"):
        data.folders(tmp_path).stream()
    (tmp_path / "b" / "0.png").write_text("no image")
    with pytest.raises(ValueError, match="looked for an image at .*b/0.png: no image"):
        data.folders(tmp_path).stream()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="must hold images alone, found .*b/notes.txt"):
        data.folders(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_when_its_batch_is_due(tmp_path, workers):
    for name in "ab":
        save(tmp_path / name / "0.png", noise(20, 20, 3))
    images = data.folders(tmp_path).stream(workers=workers).images
    whole = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "0.png").write_bytes(whole[: len(whole) // 2])
    rows = np.array([[0, 0], [0, 1], [0, 0]])
    with images.batches(rows) as batches:
        assert next(batches).shape == (2, 20, 20, 3)
        with pytest.raises(ValueError, match="image at .*b/0.png: no image, or a brok"):
            next(batches)
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(ValueError, match="image at .*b/0.png: no such file"):
        images[1]


def test_a_process_that_ends_is_an_error(photos):
    images = data.folders(photos[0]).stream(workers=1).images
    with images.batches(np.zeros((50, 2), int)) as batches:
        next(batches)
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="has ended, with exit code -9"):
            list(batches)


def test_identity_is_that_of_the_files_not_of_the_place(photos, tmp_path):
    root, pixels, _ = photos
    images = data.folders(root).stream().images
    other = shutil.copytree(root, tmp_path / "copy")
    copied = data.folders(other).stream(workers=0).images
    assert checksum(images) == checksum(copied) and describe(images) == describe(copied)
    resized = data.folders(root).stream(size=(6, 5)).images
    for changed in (
        images.select(np.arange(3)),
        images.select(np.r_[1, 0, 2:11]),
        resized,
    ):
        assert checksum(changed) != checksum(images)
        assert describe(changed) != describe(images)
    save(other / "Ant" / "00.png", np.zeros_like(pixels[0]))
    assert checksum(data.folders(other).stream().images) != checksum(images)


def test_features_of_examples():
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.proto import tf_example_pb2

    for number in (0, 7, 300, 2**40, -1):
        example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
        features = example.features.feature
        features["id"].bytes_list.value.append(b"of no interest")
        features["weight"].float_list.value.extend([0.5, 2.0])
        features["label"].int64_list.value.append(number)
        features["image"].bytes_list.value.append(bytes(range(256)))
        stored = example.SerializeToString()
        assert feature(stored, "label") == number
        assert feature(stored, "image") == bytes(range(256))
        with pytest.raises(ValueError, match="no feature 'lab'"):
            feature(stored, "lab")
