"""Every layout, written tiny, read back; and what is said where something is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from robjax import data
from robjax.data import released
from robjax.metrics import spurious


def draw(path, value, size=(6, 5), mode="RGB"):
    """Writes an image of one grey value, `size` its height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size, value, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def greys(scenes):
    return scenes.images[:, 0, 0, 0].tolist()


def test_folders(tmp_path):
    for folder, values in {"b": [30, 40], "a": [10], "c": [50]}.items():
        for value in values:
            draw(tmp_path / folder / f"{value}.png", value)
    (tmp_path / "a" / ".notes").write_text("no image")
    listing = released.folders(tmp_path, name="greys")
    assert listing.classes == ("a", "b", "c")
    scenes = listing.read(size=(4, 8))
    assert scenes.images.shape == (4, 4, 8, 3) and greys(scenes) == [10, 30, 40, 50]
    assert scenes.labels.tolist() == [0, 1, 1, 2]
    assert scenes.masks is None and scenes.backgrounds is None
    assert repr(scenes).startswith("Scenes(greys: 4 images 4×8 in 3 classes")
    part = listing.read(size=(5, 5), rows=[3, 1])
    assert greys(part) == [50, 30] and part.labels.tolist() == [2, 1]
    ordered = released.folders(tmp_path, classes=["c", "a", "b"])
    assert ordered.read(size=(5, 5)).labels.tolist() == [0, 1, 2, 2]
    assert data.Scenes is type(scenes)
    assert scenes.dataset().num_classes == 3 and scenes.dataset().groups is None


def test_decoding_resizes_each_image_whole(tmp_path):
    ramp = np.uint8(np.linspace(0, 255, 64))[None].repeat(16, 0)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    image = released.folders(tmp_path).read(size=(8, 32)).images[0, :, :, 0]
    assert np.abs(image[3].astype(int) - np.linspace(2, 253, 32)).max() <= 3
    same = released.folders(tmp_path).read(size=(16, 64)).images[0, :, :, 0]
    np.testing.assert_array_equal(same, ramp)


def test_folders_name_what_is_missing(tmp_path):
    with pytest.raises(data.NotPreparedError, match="folders of classes at .*nowhere"):
        released.folders(tmp_path / "nowhere")
    with pytest.raises(data.NotPreparedError, match="looked for images of .*none"):
        released.folders(tmp_path)
    draw(tmp_path / "a" / "0.png", 0)
    with pytest.raises(ValueError, match="class 'a' of .* is unknown: expected .* b"):
        released.folders(tmp_path, classes=["b"])
    with pytest.raises(data.NotPreparedError, match="images of class 'b' at"):
        released.folders(tmp_path, classes=["a", "b"])
    (tmp_path / "b").mkdir()
    with pytest.raises(data.NotPreparedError, match=r"looked for images \(.bmp, .*/b"):
        released.folders(tmp_path)


def test_reading_names_what_is_wrong(tmp_path):
    draw(tmp_path / "a" / "0.png", 0)
    listing = released.folders(tmp_path)
    with pytest.raises(ValueError, match="size must be a whole number"):
        listing.read(size=(0, 4))
    for rows in ([1], [], [-1], [0.5]):
        with pytest.raises(ValueError, match=r"rows must be places in 0..0, got"):
            listing.read(size=(4, 4), rows=rows)
    (tmp_path / "a" / "0.png").write_text("not a picture")
    with pytest.raises(data.NotPreparedError, match="0.png: no image"):
        listing.read(size=(4, 4))
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(data.NotPreparedError, match="0.png: no such file"):
        listing.read(size=(4, 4))


def write_waterbirds(root, rows, header="img_id,img_filename,y,split,place"):
    lines = [header]
    for number, (y, split, place) in enumerate(rows):
        name = f"{y}.species/bird {number}.jpg"
        draw(root / name, 20 * number)
        lines.append(f"{number},{name},{y},{split},{place}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


BIRDS = [(0, 0, 0), (1, 0, 1), (0, 2, 1), (1, 2, 0), (1, 2, 1), (0, 1, 0)]


def test_waterbirds(tmp_path):
    write_waterbirds(tmp_path, BIRDS)
    test = released.waterbirds(tmp_path, "test").read(size=(5, 6))
    np.testing.assert_allclose(greys(test), [40, 60, 80], atol=2)  # JPEG
    assert test.labels.tolist() == [0, 1, 1]
    assert test.backgrounds.tolist() == [1, 0, 1]
    assert test.groups.tolist() == [1, 2, 3]  # 2 y + place
    assert test.dataset().num_groups == 4
    assert len(released.waterbirds(tmp_path, "train").paths) == 2
    assert len(released.waterbirds(tmp_path, "val").paths) == 1


def test_waterbirds_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        released.waterbirds(tmp_path, "dev")
    with pytest.raises(
        data.NotPreparedError, match="table of Waterbirds at .*metadata"
    ):
        released.waterbirds(tmp_path, "test")
    write_waterbirds(tmp_path, BIRDS, header="img_id,img_filename,label,split,place")
    with pytest.raises(ValueError, match=r"metadata.csv must have columns .*\['y'\]"):
        released.waterbirds(tmp_path, "test")
    write_waterbirds(tmp_path, [(2, 2, 0)])
    with pytest.raises(ValueError, match="y of .* must be 0 or 1, got '2'"):
        released.waterbirds(tmp_path, "test")
    with pytest.raises(data.NotPreparedError, match="Waterbirds train in .*none there"):
        released.waterbirds(tmp_path, "train")


def test_imagenet9(tmp_path):
    for variant, shift in (("mixed_same", 0), ("mixed_rand", 5)):
        for label, folder in enumerate(["00_dog", "01_bird", "02_wheeled vehicle"]):
            draw(tmp_path / variant / "val" / folder / "x.JPEG", 40 * label + shift)
    same = released.imagenet9(tmp_path, "mixed_same").read(size=(6, 5))
    rand = released.imagenet9(tmp_path, "mixed_rand").read(size=(6, 5))
    assert same.labels.tolist() == rand.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(greys(same), [0, 40, 80], atol=2)
    np.testing.assert_allclose(greys(rand), [5, 45, 85], atol=2)
    assert same.name == "ImageNet-9 mixed_same"
    with pytest.raises(data.NotPreparedError, match="only_fg/val: no such"):
        released.imagenet9(tmp_path, "only_fg")


def write_rival10(root):
    names = {"n01": "airliner", "n02": "zebra", "n03": "teapot"}
    labels = {"airliner": ["plane", 2], "zebra": ["equine", 6]}
    labels |= {f"other {k}": [f"class {k}", k] for k in (0, 1, 3, 4, 5, 7, 8, 9)}
    root.mkdir(exist_ok=True)
    (root / "wnid_to_class.json").write_text(json.dumps(names))
    (root / "label_mappings.json").write_text(json.dumps(labels))
    folder = root / "test" / "ordinary"
    for wnid, value in (("n01", 0), ("n02", 255)):
        draw(folder / f"{wnid}_7.JPEG", 100)
        draw(folder / f"{wnid}_7_merged_mask.JPEG", value)
        (folder / f"{wnid}_7_attr_dict.pkl").write_bytes(b"")
    return folder


def test_rival10(tmp_path):
    folder = write_rival10(tmp_path)
    listing = released.rival10(tmp_path, "test")
    assert listing.classes[2] == "plane" and len(listing.classes) == 10
    scenes = listing.read(size=(8, 8))
    assert scenes.labels.tolist() == [2, 6] and scenes.num_classes == 10
    assert scenes.masks.dtype == bool
    np.testing.assert_array_equal(scenes.masks.all((1, 2)), [False, True])
    np.testing.assert_array_equal(scenes.masks.any((1, 2)), [False, True])

    draw(folder / "n01_7_merged_mask.JPEG", 0, size=(6, 6))
    with pytest.raises(
        ValueError, match=r"n01_7.JPEG is \[6, 5\], its mask .*_mask.JPEG is \[6, 6\]"
    ):
        listing.read(size=(8, 8))
    (folder / "n01_7_merged_mask.JPEG").unlink()
    with pytest.raises(data.NotPreparedError, match="n01_7_merged_mask.JPEG: no such"):
        listing.read(size=(8, 8))
    for unknown in ("n03", "n04"):
        draw(folder / f"{unknown}_1.JPEG", 9)
        with pytest.raises(ValueError, match=f"class '{unknown}' of .* is unknown"):
            released.rival10(tmp_path, "test")
        (folder / f"{unknown}_1.JPEG").unlink()
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        released.rival10(tmp_path, "val")
    with pytest.raises(data.NotPreparedError, match="train images of RIVAL10 at"):
        released.rival10(tmp_path, "train")
    (tmp_path / "wnid_to_class.json").write_text("{")
    with pytest.raises(ValueError, match="wnid_to_class.json must be JSON"):
        released.rival10(tmp_path, "test")


def test_salient_imagenet(tmp_path):
    masks = {("n1", 3, "a"): 51, ("n1", 4, "a"): 204, ("n1", 4, "b"): 102}
    masks |= {("n2", 3, "a"): 255}
    for (wnid, feature, name), value in masks.items():
        folder = tmp_path / wnid / f"feature_{feature}"
        draw(folder / "images" / f"{name}.jpeg", 90)
        draw(folder / "cams" / f"{name}.jpeg", value, mode="L")
    listing = released.salient_imagenet(tmp_path, {"n1": [3, 4], "n2": [3]})
    scenes = listing.read(size=(4, 4))
    assert scenes.labels.tolist() == [0, 0, 1] and scenes.masks.dtype == np.float32
    np.testing.assert_allclose(scenes.masks[:, 0, 0], [0.8, 0.4, 1.0], atol=0.01)
    alone = released.salient_imagenet(tmp_path, {"n2": [3]}, classes=["n1", "n2"])
    assert alone.read(size=(4, 4)).labels.tolist() == [1]
    with pytest.raises(data.NotPreparedError, match="feature 9 of class n2 at"):
        released.salient_imagenet(tmp_path, {"n2": [9]})
    with pytest.raises(ValueError, match="class 'n2' of .* is unknown"):
        released.salient_imagenet(tmp_path, {"n2": [3]}, classes=["n1"])
    (tmp_path / "n2" / "feature_3" / "cams" / "a.jpeg").unlink()
    with pytest.raises(data.NotPreparedError, match="cams/a.jpeg: no such file"):
        listing.read(size=(4, 4))


def test_objectnet(tmp_path):
    for folder, value in (("banana", 10), ("chair", 60), ("unmapped", 90)):
        draw(tmp_path / "images" / folder / "0.png", value)
    (tmp_path / "map.json").write_text(json.dumps({"chair": [4, 2], "banana": 1}))
    (tmp_path / "map.csv").write_text("folder,index\nchair,4\nchair,2\nbanana,1\n")
    for name in ("map.json", "map.csv"):
        listing = released.objectnet(tmp_path / "images", tmp_path / name)
        assert listing.classes == ("banana", "chair")
        assert listing.outputs == ((1,), (4, 2))
        assert greys(listing.read(size=(4, 4))) == [10, 60]
    table = listing.table(6)
    assert table.tolist() == [-1, 0, 1, -1, 1, -1]
    outputs = np.eye(6, dtype=np.float32)
    mapped = spurious.map_classes(lambda x: x, table)(outputs)
    assert np.argmax(mapped, axis=1).tolist() == [2, 0, 1, 2, 1, 2]
    with pytest.raises(ValueError, match="num_outputs must be above 4"):
        listing.table(4)
    with pytest.raises(ValueError, match="must have outputs to make a table"):
        listing._replace(outputs=None).table(6)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.json", "[1]", "must be a JSON object"),
        ("map.json", '{"a": 1, "b": [1]}', "output 1 .* one class, got 'a' and 'b'"),
        ("map.json", '{"a": [-1]}', "class 'a' .* must have outputs 0, 1, …, got -1"),
        ("map.json", '{"a": ["x"]}', "class 'a' .* got 'x'"),
        ("map.csv", "class,index\na,1\n", "columns folder and index"),
        ("map.json", '{"a": 1}', "images of class 'a' of .*map.json at"),
    ],
)
def test_class_maps_name_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        released.objectnet(tmp_path, tmp_path / name)


def test_a_class_map_that_is_not_there(tmp_path):
    with pytest.raises(data.NotPreparedError, match="a class map at .*none.json"):
        released.objectnet(tmp_path, tmp_path / "none.json")
