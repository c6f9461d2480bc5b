"""Downloads a TFDS data set and writes it as ArrayRecord; needs TensorFlow.

    python -m pd_jax.prepare --dataset=NAME[/CONFIG][:VERSION] [--data_dir=DIR]
        [--manual_dir=DIR]

Training reads what this leaves and needs no TensorFlow: see pd_jax/data/tfds.py. Some
data sets, imagenet2012 among them, cannot be downloaded by a program: put their files
into --manual_dir first, as their page in the TFDS catalogue says.
"""

import argparse
import importlib.util
import sys

from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.runtime.registry import suggest


def prepare(dataset: str, data_dir: str = "", manual_dir: str = "") -> str:
    """Prepares a data set; returns the config flags that train on it.

    Args:
      dataset: name, with config and version if need be.
      data_dir: where to; empty for TFDS's own default.
      manual_dir: files that were downloaded by hand; empty for TFDS's own default.

    Raises:
      Refused: without TensorFlow, or for a name that TFDS does not know.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise Refused(
            "preparing a data set takes TensorFlow, training on it does not: install "
            "it here with\n"
            "  pip install 'pd_jax[prepare]'\n"
            "or prepare the data set on another machine, and copy the folder"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            dataset, data_dir=data_dir or None, file_format="array_record"
        )
    except tfds.core.DatasetNotFoundError as error:
        raise Refused(
            f"--dataset={dataset}: TFDS knows no such data set."
            + suggest(dataset, tfds.list_builders(with_community_datasets=False))
        ) from error
    except ValueError as error:
        raise Refused(
            f"--dataset={dataset}: {error}\nWhere files of another format are in the "
            "way, give another --data_dir."
        ) from error
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
    builder.download_and_prepare(download_config=config)
    return _flags(builder, dataset, data_dir)


def _flags(builder, dataset: str, data_dir: str) -> str:
    """Flags of a config on data set "tfds", for what a builder holds."""
    values = {"dataset": dataset, "data_dir": data_dir}
    for key, feature in builder.info.features.items():
        if type(feature).__name__ == "Image":
            values.setdefault("image_key", key)
            if None in feature.shape or feature.shape[0] != feature.shape[1]:
                values.setdefault("size", "64")
        if type(feature).__name__ == "ClassLabel":
            values.setdefault("label_key", key)
    return " ".join(f"--config.data.{k}={v}" for k, v in values.items() if v)


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pd_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="cifar10, lsun/bedroom, ...")
    parser.add_argument("--data_dir", default="", help="default: ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", default="", help="files got by hand")
    given = parser.parse_args(argv)
    try:
        flags = prepare(given.dataset, given.data_dir, given.manual_dir)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f'Ready. In a config with default("tfds", ...):\n  {flags}')
    return 0


if __name__ == "__main__":
    console.outlive_readers()
    sys.exit(main(sys.argv[1:]))
