"""What SAEs that run elsewhere have in common: requests side by side, retries, and the wire format.

Nothing here knows a particular service. httpx, tenacity and pyarrow are imported when they are used.
"""
