"""The common part of all clients of servers: checked URLs, keys, retries, and waiting messages.

Nothing here knows a particular server or its requests.
"""
