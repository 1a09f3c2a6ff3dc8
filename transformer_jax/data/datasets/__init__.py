"""Holds the TFDS builders that ship with the library, each in a package of its own, as TFDS requires."""
