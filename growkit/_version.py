"""The one place of the version: packaging reads it, and folders that may not import the package."""

__version__ = "0.1.0"
