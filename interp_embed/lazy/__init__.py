"""Lazy objects for xarray and dask: arrays of sparse blocks that read a store when computed.

Nothing outside of this package imports dask, xarray or sparse, and it is imported when one of its
objects is asked for.
"""
