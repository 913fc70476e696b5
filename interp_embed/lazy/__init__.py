"""Lazy objects for xarray and dask: arrays of sparse blocks that read a store when computed.

Nothing outside this package imports dask, xarray or sparse. The package is imported when one of its
objects is requested.
"""
