"""Arrays in sharded Zarr objects: folders of them, written once, read whole or by ranges."""
