"""MNIST (LeCun, Cortes, Burges): handwritten digits."""

from mpi_ntkdfl.data.image_sets import Hashes, ImageSet

MNIST = ImageSet(
    name="mnist",
    licence="CC BY-SA 3.0",
    base="https://ossci-datasets.s3.amazonaws.com/mnist/",
    folder="MNIST",
    mean=0.1307,
    deviation=0.3081,
    hashes={
        "train_images": Hashes(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train_labels": Hashes(
            "d53e105ee54ea40749a09fcbcd1e9432",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "test_images": Hashes(
            "9fb629c4189551a2d022fa330f9573f3",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "test_labels": Hashes(
            "ec29112dd5afa0611ce80d1b7f02629c",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)
