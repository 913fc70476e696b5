"""What every other package may use. Knows numpy and the standard library, and nothing of this library."""
