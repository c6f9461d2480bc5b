"""TensorFlow Datasets, read without TensorFlow.

`python -m pd_jax.prepare` downloads a data set and writes it as ArrayRecord. That takes
TensorFlow; training needs the files alone.
"""

import contextlib
import dataclasses
import functools
import io
import urllib.parse

import numpy as np
from etils import epath

from pd_jax.data import Dataset, Description
from pd_jax.data._records import Records
from pd_jax.runtime.errors import Refused
from pd_jax.storage import draws
from pd_jax.storage.writers import write_whole

BLOCK = 4096  # records that are read at once for their labels


@dataclasses.dataclass(frozen=True)
class _Split:
    """One split's records; see `_records.Source`."""

    name: str
    data: object  # tfds' data source, which leaves pictures encoded
    image_key: str
    label_key: str
    kept: epath.Path  # where labels are kept as one array

    def __str__(self) -> str:
        return self.name

    def __len__(self) -> int:
        return len(self.data)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """[N] int32: read once, from then on from a file beside the data set's own."""
        if not self.label_key:
            return None
        if self.kept.exists():
            with contextlib.suppress(ValueError, OSError):
                labels = np.load(io.BytesIO(self.kept.read_bytes()), allow_pickle=False)
                some = draws.rows(64, len(self), 0)
                now = [e[self.label_key] for e in self.data.__getitems__(some.tolist())]
                # As many of the same labels: else the data were prepared anew.
                if labels.shape == (len(self),) and np.array_equal(labels[some], now):
                    return labels
        labels = np.empty(len(self), np.int32)
        for first in range(0, len(self), BLOCK):
            rows = range(first, min(first + BLOCK, len(self)))
            examples = self.data.__getitems__(list(rows))
            labels[first : rows.stop] = [e[self.label_key] for e in examples]
        content = io.BytesIO()
        np.save(content, labels)
        with contextlib.suppress(OSError):  # a folder that is only read is read again
            write_whole(self.kept, content.getvalue())
        return labels

    def __getitem__(self, row: int) -> dict:
        example = self.data[row]
        record = {"image": example[self.image_key]}
        if self.label_key:
            record["label"] = int(example[self.label_key])
        return record


def describe(size: int, label_key: str, **options) -> Description | None:
    """What `load` would give, where `size` is given: RGB pictures."""
    if size < 1:
        return None
    return Description((size, size, 3), None if label_key else 0)


def load(
    dataset: str = "",
    data_dir: str = "",
    split: str = "train",
    size: int = 0,
    image_key: str = "image",
    label_key: str = "",
    flip: bool = False,
) -> Dataset:
    """A prepared data set's pictures, cropped to squares and resized by area.

    Args:
      dataset: name, with config and version if need be: cifar10, lsun/bedroom,
        imagenet_resized/64x64:0.1.0.
      data_dir: where it is prepared; empty for TFDS's own default.
      split: train, test, train[:90%], ...
      size: height and width; 0 for that of the data set, where all are one square.
      image_key: name of the pictures' feature.
      label_key: name of the labels' feature; empty for none.
      flip: mirrors half of the training images left to right.

    Raises:
      Refused: for data that are not prepared, or not as ArrayRecord; for a split or
        feature that is not there, or of a kind that cannot be used.
    """
    if not dataset:
        raise Refused('data.dataset="": give a name, like cifar10 or lsun/bedroom')
    builder = _builder(dataset, data_dir)
    features = builder.info.features
    wanted = {"image_key": (image_key, "Image")}
    if label_key:
        wanted["label_key"] = (label_key, "ClassLabel")
    for option, (key, kind) in wanted.items():
        if key not in features or type(features[key]).__name__ != kind:
            raise Refused(
                f'data.{option}="{key}": {dataset} has no such {kind}; it has '
                + ", ".join(f"{k} ({type(v).__name__})" for k, v in features.items())
            )
    *sides, channels = features[image_key].shape
    if channels not in (1, 3) or features[image_key].np_dtype != np.uint8:
        raise Refused(
            f'data.image_key="{image_key}": {features[image_key]} is not an 8-bit '
            "picture in RGB or grey"
        )
    if size < 0 or (not size and (sides[0] is None or sides[0] != sides[1])):
        raise Refused(
            f"data.size={size}: pictures of {dataset} are {sides[0]} x {sides[1]}; "
            "give the height and width to resize them to"
        )
    label = features[label_key] if label_key else None
    return Records(
        _split(builder, dataset, split, image_key, label_key),
        (size or sides[0], size or sides[1], channels),
        label.num_classes if label else 0,
        flip,
        tuple(label.names) if label else (),
    )


def _builder(dataset: str, data_dir: str):
    """The builder of a prepared data set, made from its files alone."""
    # Here, because it takes half a second that other data sets need not wait.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    prepare = f"python -m pd_jax.prepare --dataset={dataset}"
    prepare += f" --data_dir={data_dir}" if data_dir else ""
    place = data_dir or str(tfds.core.constants.DATA_DIR)
    try:
        builder = builder_from_files(dataset, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        raise Refused(
            f'data.dataset="{dataset}" is not prepared in data.data_dir={place}: run\n'
            f"  {prepare}"
        ) from error
    if "array_record" not in {f.value for f in builder.info.available_file_formats()}:
        raise Refused(
            f"{builder.data_dir} holds {builder.info.file_format.value} files, which "
            "cannot be read in any order: prepare it as ArrayRecord, in another folder "
            "if you keep this one,\n"
            f"  python -m pd_jax.prepare --dataset={dataset} --data_dir=NEW_FOLDER\n"
            "and set data.data_dir to it"
        )
    return builder


def _split(builder, dataset: str, split: str, image_key: str, label_key: str) -> _Split:
    import tensorflow_datasets as tfds

    decoders = {image_key: tfds.decode.SkipDecoding()}
    try:
        data = builder.as_data_source(
            split, decoders=decoders, file_format="array_record"
        )
        name = ",".join(urllib.parse.quote(s, safe="") for s in (split, label_key))
        kept = epath.Path(builder.data_dir) / f".pd_jax_labels_{name}.npy"
        source = _Split(f"{dataset} {split}", data, image_key, label_key, kept)
        if len(source):
            source[0]
            return source
    except Exception as error:  # TFDS and ArrayRecord have no kind of their own
        raise Refused(
            f'data.split="{split}" of {builder.data_dir} cannot be read '
            f"({type(error).__name__}: {error}); its splits are "
            + ", ".join(builder.info.splits)
        ) from error
    raise Refused(f'data.split="{split}" of {dataset} is empty')
