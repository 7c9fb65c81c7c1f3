"""Measurements that only this project's evidence needs. They are not part of the package; see README.md."""
