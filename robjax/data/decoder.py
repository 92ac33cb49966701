"""Decodes images; also the program of the processes that do nothing else.

    python -P decoder.py        requests on stdin, pixels on stdout

It imports neither JAX nor robjax, so such a process takes about 10 MB. (Processes of
`multiprocessing` import the script that starts them, with JAX and all.) What goes in is
pickled, but for classes of robjax. What comes out is a number n of 8 bytes: n bytes of
pixels follow, or −n bytes of text that says what is wrong.
"""

import io
import pickle
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

HEADER = struct.Struct("<q")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, but for what follows them


class Form(NamedTuple):
    """The one form that all images of a set are brought to.

    Attributes:
      height, width, channels: of the decoded images.
      resize: images of other sizes are resized; otherwise they are an error.
      convert: likewise for images with other channels.
      crop: the share of the largest central part of the aspect height : width that is
        resized, of each side; None: the whole image is.
      feature: what the image is called in the examples that hold it; None: images are
        files.
    """

    height: int
    width: int
    channels: int
    resize: bool
    convert: bool
    crop: float | None = None
    feature: str | None = None


def decode(item: str | bytes, form: Form) -> bytes:
    """Decodes one image.

    >>> decode("/no/such/image.png", Form(4, 4, 3, resize=False, convert=False))
    Traceback (most recent call last):
      ...
    ValueError: looked for an image at /no/such/image.png: no such file

    Args:
      item: the path of a file, or an example (tf.train.Example) that holds the image.
      form: what to bring it to.

    Returns:
      height · width · channels bytes.

    Raises:
      ValueError: there is no image, or it has another form; the message names the file.
    """
    from PIL import Image

    where = item if isinstance(item, str) else "a stored example"
    try:
        file: Any = item
        if isinstance(item, bytes):
            file = io.BytesIO(feature(item, form.feature or ""))
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # of many kinds, by what is wrong with the file
        raise _no_image(where, error) from error
    return _shaped(_converted(image, where, form), where, form).tobytes()


def _no_image(where: str, error: Exception) -> ValueError:
    missing = isinstance(error, FileNotFoundError)
    found = "no such file" if missing else f"no image, or a broken one ({error})"
    return ValueError(f"looked for an image at {where}: {found}")


def _converted(image: Any, where: str, form: Form) -> Any:
    mode = MODES[form.channels]
    if image.mode == mode:
        return image
    if image.mode.startswith(_DEEP):
        raise ValueError(f"images must have 8 bits a channel, {where} has more")
    if not form.convert:
        raise ValueError(
            f"all images must have the {form.channels} channels of the first, {where} "
            f"is {image.mode}: give channels to convert them"
        )
    return image.convert(mode)


def _shaped(image: Any, where: str, form: Form) -> Any:
    from PIL import Image

    size = (form.width, form.height)
    if not form.resize and image.size != size:
        raise ValueError(
            f"all images must have the size of the first, {form.height}×{form.width}, "
            f"{where} is {image.height}×{image.width}: give size=(height, width)"
        )
    box = None
    if form.crop is not None:
        zoom = form.crop * min(image.width / form.width, image.height / form.height)
        left = (image.width - zoom * form.width) / 2
        top = (image.height - zoom * form.height) / 2
        box = (left, top, image.width - left, image.height - top)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def measure(path: str) -> tuple[int, int, str]:
    """Height, width and mode (as in `MODES`) of a file, read off its first bytes.

    >>> measure("/no/such/image.png")
    Traceback (most recent call last):
      ...
    ValueError: looked for an image at /no/such/image.png: no such file

    Raises:
      ValueError: it is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width, image.mode
    except Exception as error:
        raise _no_image(path, error) from error


def feature(example: bytes | memoryview, name: str) -> Any:
    """The first value, bytes or int, of a feature of a serialized tf.train.Example.

    >>> feature(bytes.fromhex("0a0c0a0a0a017912051a030a0107"), "y")
    7

    Raises:
      ValueError: there is none of this name.
    """
    for _, features in _fields(memoryview(example)):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            if bytes(parts[1]) != name.encode():
                continue
            for kind, values in _fields(parts[2]):
                for _, value in _fields(values):
                    if kind == 1:
                        return bytes(value)
                    number = value if isinstance(value, int) else _varint(value, 0)[0]
                    return number - (1 << 64) if number >> 63 else number
    raise ValueError(f"no feature {name!r}")


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protocol buffer."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            length = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        yield tag >> 3, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and the place after it."""
    number = shift = 0
    while True:
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7


def _answer(items: Sequence[str | bytes], form: Form) -> list[bytes]:
    """The header and the pixels of a batch, or the text that says what is wrong."""
    try:
        parts = [decode(item, form) for item in items]
        return [HEADER.pack(sum(map(len, parts))), *parts]
    except ValueError as error:
        text = str(error).encode()
        return [HEADER.pack(-len(text)), text]


def main() -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the process that asks
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            items, form = pickle.load(requests)
            answers.writelines(_answer(items, Form(*form)))
            answers.flush()
        except (EOFError, BrokenPipeError):  # the process that asks has ended
            return


if __name__ == "__main__":
    main()
