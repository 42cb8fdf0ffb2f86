"""What every hand-written rule shares. Knows no component."""
