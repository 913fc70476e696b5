"""What the commands do, a module per command or group."""
