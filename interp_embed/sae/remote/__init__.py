"""The common part of SAEs that run elsewhere: concurrent requests, retries, and the wire format.

Nothing here knows a particular service. httpx, tenacity and pyarrow are imported when they are used.
"""
