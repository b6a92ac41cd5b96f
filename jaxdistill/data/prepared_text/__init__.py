"""The TFDS data set that `prepare` writes, in a package folder of its own because TFDS looks for
its files there."""
