"""Tests of one unit each, in seconds; the folders mirror the packages."""
