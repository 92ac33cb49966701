"""Downloads a set of TensorFlow Datasets and stores it as ArrayRecord, once.

    pip install 'robjax[prepare]'
    python -m robjax.data.prepare mnist

This is the only part of robjax that needs TensorFlow and the network. (The command
``tfds build`` would need Apache Beam besides.)
"""

import argparse
import importlib
import pathlib

from robjax.runs.files import PathLike


def prepare(name: str, data_dir: PathLike | None = None) -> pathlib.Path:
    """Downloads the set `name` and stores it in `data_dir`, unless it is there.

    >>> folder = prepare("mnist")  # doctest: +SKIP

    Args:
      name: in the catalogue of TensorFlow Datasets, "name[/config][:version]".
      data_dir: default: the environment variable TFDS_DATA_DIR, else
        ~/tensorflow_datasets.

    Returns:
      The folder of the prepared set.

    Raises:
      ImportError: TensorFlow is not installed.
      ValueError: there is no such set, or it is in `data_dir` in another format.
    """
    try:
        importlib.import_module("tensorflow")
    except ImportError as error:
        raise ImportError(
            f"preparing {name!r} needs TensorFlow: pip install 'robjax[prepare]'"
        ) from error
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m robjax.data.prepare",
        description="Downloads a set of TensorFlow Datasets, stores it as ArrayRecord.",
    )
    parser.add_argument("name", help="name[/config][:version], as mnist or cifar10")
    parser.add_argument("--data-dir", help="default: TFDS_DATA_DIR")
    arguments = parser.parse_args()
    print(prepare(arguments.name, arguments.data_dir))
