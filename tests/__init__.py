"""Tests of the whole project, flat: one file a module."""
