"""TFDS builders that ship with the project, each in a package of its own as TFDS wants it."""
