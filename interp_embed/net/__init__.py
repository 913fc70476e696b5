"""What all clients of servers need: checked URLs, keys, retries, and lines for somebody who waits.

Nothing here knows what is asked, or of whom.
"""
