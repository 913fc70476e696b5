"""Sending questions to a server that speaks OpenAI's protocol, and reading the answers."""
