"""Shared by the tests of all folders: builders of small models and data, real processes, and oracles."""
