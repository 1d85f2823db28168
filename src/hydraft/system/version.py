"""The version of this package, read by the build and written into what a run saves."""

__version__ = "0.1.0"
